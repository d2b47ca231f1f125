//! `send`: a message of a plugin's becomes deliveries, once by its key, which take the way of every other:
//! committed, queued, sent, taken up again after a crash. It waits for the commit and not for the sending.

use super::params::{Params, shown, wrong};
use super::shapes::{SendAnswer, SendAsk};
use super::{CallError, Caller, CallerRequest, Calls};
use crate::clock;
use crate::ledger::nexus::{NO_REQUEST_SEQ, channel_of};
use crate::pipeline::outbox::Message;
use crate::routes::{Place, Route};
use nexus_core::request::DeliveryTarget;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

/// Longest message.
const TEXT_BYTES_MAX: usize = 256 * 1024;
/// Messages that one message may be split into.
const PIECES_MAX: usize = 1_000;
/// Sends of one hook call.
const SENDS_PER_HOOK_MAX: u32 = 100;
/// Longest id of a target or thread; longer ones no event has.
const ID_BYTES_MAX: usize = 1_024;
/// Longest name of an adapter or account, and longest `n` or `key`.
const NAME_BYTES_MAX: usize = 64;
const NUMBER_MAX: u64 = 9_999;

/// Answers `{text, to?, adapter?, account?, thread_id?, n?, key?}` with `{delivery_id, messages, repeated}`.
pub(super) async fn call(calls: &Calls, caller: &Caller, mut params: Value) -> Result<Value, CallError> {
    if params.get("n").is_none_or(Value::is_null) {
        caller.number("send", &mut params);
    }
    let sends = caller.request.as_ref().map_or(0, |request| request.sends.load(Ordering::Relaxed));
    if sends > SENDS_PER_HOOK_MAX {
        return Err(CallError::Limit(format!("one hook call may send {SENDS_PER_HOOK_MAX} messages")));
    }
    let mut params = Params::of::<SendAsk>(params)?;
    let text = params.text("text", TEXT_BYTES_MAX)?;
    let key = key(caller, &mut params)?;
    let mut place = place(caller.request.as_ref(), &mut params)?;
    let route = route(calls, &place.adapter).await?;
    if place.target.channel.is_empty() {
        place.target.channel = channel(calls, &place.adapter).await?;
    }
    let (request_id, event_seq) = match &caller.request {
        Some(request) => (request.request_id.as_str(), request.event_seq),
        None => ("", NO_REQUEST_SEQ),
    };
    let message = Message { key: &key, request_id, event_seq, place: &place, text: &text, ttl_ms: route.ttl_ms };
    let pieces = message.pieces(&route);
    if pieces.len() > PIECES_MAX {
        return Err(CallError::Limit(format!("`text` would be {} messages; at most {PIECES_MAX} are sent", pieces.len())));
    }
    // Before it can come back.
    pieces.iter().for_each(|piece| calls.breakers.sent(&piece.channel, &piece.content, clock::mono_ms()));
    let told = calls.outbox.say(key, pieces, calls.admitted.clone()).await;
    let told = told.map_err(|error| CallError::failed("put the message into the ledger", error))?;
    let (messages, repeated) = (told.delivery_ids.len(), told.was_before);
    let first = told.delivery_ids.into_iter().next();
    let delivery_id = first.ok_or_else(|| CallError::failed("put the message into the ledger", "there is nothing of it to send"))?;
    Ok(json!(SendAnswer { delivery_id, messages, repeated }))
}

/// The key under which this message is said once: of its request and number, or else of the name that the
/// caller gave it. Neither a plugin's name nor what is behind it has a `:` too many or a `/`.
fn key(caller: &Caller, params: &mut Params) -> Result<String, CallError> {
    let plugin = caller.who();
    let (n, key) = (params.take("n"), params.take("key"));
    match (&caller.request, n, key) {
        (Some(request), Some(n), None) => Ok(format!("{}:{plugin}:{}", request.request_id, number(&n)?)),
        (None, None, Some(key)) => {
            let key = key.as_str().filter(|key| is_name(key)).ok_or_else(|| wrong("key", NAME_RULE))?;
            Ok(format!("plugin:{plugin}:{key}"))
        }
        (Some(_), _, Some(_)) => Err(wrong("key", "is for calls without a request; within one there is `n`")),
        (None, Some(_), _) => Err(wrong("n", "counts messages of a request, and there is none; give the message a `key`")),
        (Some(_), None, None) => Err(wrong("n", "is missing")),
        (None, None, None) => Err(wrong("key", "is missing: without a request a message needs one, so that it is not sent twice")),
    }
}

const NAME_RULE: &str = "must be 1 to 64 characters of A-Z a-z 0-9 . _ @ + -, not starting with -";

fn number(n: &Value) -> Result<String, CallError> {
    let number = n.as_u64().filter(|number| *number <= NUMBER_MAX).map(|number| number.to_string());
    let name = || n.as_str().filter(|name| is_name(name)).map(str::to_owned);
    number.or_else(name).ok_or_else(|| wrong("n", format!("must be a whole number up to {NUMBER_MAX}, or a text: it {NAME_RULE}")))
}

/// As names in the configuration are: they become arguments and parts of paths.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@+-".contains(c);
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.starts_with('-') && text.chars().all(allowed)
}

/// Where the request's answer goes, but for what is asked otherwise. Another adapter's channel isn't known
/// yet, and is empty.
fn place(request: Option<&CallerRequest>, params: &mut Params) -> Result<Place, CallError> {
    let adapter = name(params, "adapter")?;
    let account = name(params, "account")?;
    let to = id(params, "to")?;
    let thread_id = id(params, "thread_id")?;
    let own = request.filter(|request| adapter.as_ref().is_none_or(|adapter| *adapter == request.adapter));
    let Some(request) = own else {
        let needed = |field: &str| wrong(field, "is missing: it is needed where there is no request, or for another adapter than its own");
        let target = DeliveryTarget {
            channel: String::new(),
            account_id: account.ok_or_else(|| needed("account"))?,
            target: to.ok_or_else(|| needed("to"))?,
            thread_id,
            reply_to_id: None,
        };
        return Ok(Place { adapter: adapter.ok_or_else(|| needed("adapter"))?, target });
    };
    let mut target = request.target.clone();
    let is_other = |given: &Option<String>, own: &String| given.as_ref().is_some_and(|given| given != own);
    if is_other(&account, &target.account_id) || is_other(&to, &target.target) {
        (target.thread_id, target.reply_to_id) = (None, None);
    }
    target.account_id = account.unwrap_or(target.account_id);
    target.target = to.unwrap_or(target.target);
    target.thread_id = thread_id.or(target.thread_id);
    Ok(Place { adapter: request.adapter.clone(), target })
}

fn name(params: &mut Params, field: &str) -> Result<Option<String>, CallError> {
    let name = params.optional_text(field, NAME_BYTES_MAX)?;
    if name.as_deref().is_some_and(|name| !is_name(name)) {
        return Err(wrong(field, NAME_RULE));
    }
    Ok(name)
}

fn id(params: &mut Params, field: &str) -> Result<Option<String>, CallError> {
    let id = params.optional_text(field, ID_BYTES_MAX)?;
    if id.as_deref().is_some_and(|id| id.chars().any(char::is_control)) {
        return Err(wrong(field, "contains a control character"));
    }
    Ok(id)
}

async fn route(calls: &Calls, adapter: &str) -> Result<Route, CallError> {
    let route = calls.routes.settled(adapter).await;
    let unknown = || wrong("adapter", format!("`{}` is not configured; name one, with `account` and `to`", shown(adapter)));
    let route = route.ok_or_else(unknown)?;
    if route.sender.is_none() {
        return Err(wrong("adapter", format!("`{adapter}` can't send; name another, with `account` and `to`")));
    }
    Ok(route)
}

async fn channel(calls: &Calls, adapter: &str) -> Result<String, CallError> {
    let name = adapter.to_owned();
    let read = calls.ledgers.nexus.readers.read(move |connection| channel_of(connection, &name)).await;
    let known = read.map_err(|error| CallError::failed("look up the adapter's channel", error))?;
    known.ok_or_else(|| CallError::failed("look up the adapter's channel", format!("`{adapter}` never ran; start it once")))
}
