//! Calls of plugins on real ledgers, with an outbox that sends.
#![allow(clippy::unwrap_used)]

use super::shapes::{Ask, FetchAsk, LlmAsk, QueryAsk, SearchAsk, SendAsk};
use super::*;
use crate::bus::Bus;
use crate::clock::Expiry;
use crate::keeper::SpawnError;
use crate::ledger::cortex::{self, Entry, Kind};
use crate::ledger::nexus::{Admit, BeginEpoch, Delivery, NO_REQUEST_SEQ, NewDelivery, Say, deliveries};
use crate::metrics::Metrics;
use crate::patience::{DEADLINE, eventually, soon};
use crate::pipeline::Agent;
use crate::routes::{Route, Sender};
use crate::samples;
use crate::supervisor::BoxFuture;
use crate::watch::Watch;
use nexus_core::config::{self, OnUncertain};
use nexus_core::protocol::SendOutcome;
use serde_json::json;

const EPOCH: i64 = 1;
const TEXT_LIMIT_CHARS: usize = 20;

/// A platform where everything arrives; what did, by key and text.
#[derive(Debug, Default)]
struct Platform(Mutex<Vec<(String, String)>>);

impl Sender for Platform {
    fn send<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Result<SendOutcome, SpawnError>> {
        Box::pin(async move {
            self.0.lock().unwrap().push((delivery.idempotency_key.clone(), delivery.content.clone()));
            Ok(SendOutcome::Sent { message_ids: vec![delivery.delivery_id.clone()] })
        })
    }
}

/// Calls in a ledger with one admitted request, that of event 1; `fake` and `mail` can send, `hook` can't.
pub(super) struct Place {
    pub(super) calls: Calls,
    platform: Arc<Platform>,
    admitted: watch::Sender<i64>,
    ledgers: Ledgers,
    pub(super) directory: tempfile::TempDir,
}

impl Place {
    pub(super) async fn new() -> Self {
        let place = Self::unadmitted().await;
        place.admit().await;
        place
    }

    /// The same, while the commit that admits the request is still on its way.
    async fn unadmitted() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ledgers, _threads) = Ledgers::start(directory.path(), 0).unwrap();
        ledgers.nexus.writer.write(BeginEpoch { at: 1 }).await.unwrap();
        let (platform, (admitted, view)) = (Arc::new(Platform::default()), watch::channel(0));
        let routes = routes(&platform);
        let outbox = outbox(&ledgers, &routes);
        let settings = Arc::new(ArcSwap::from_pointee(settings(HashMap::new())));
        let calls = Calls::new(CallsNeed {
            ledgers: ledgers.clone(),
            settings,
            routes,
            outbox,
            breakers: Breakers::default(),
            admitted: view,
            search: Search::beside(&ledgers),
            meters: Meters::default(),
            metrics: Metrics::new(),
        });
        Self { calls, platform, admitted, ledgers, directory }
    }

    async fn admit(&self) {
        let admit = Admit { from_seq: 0, upto_seq: 1, rows: vec![samples::row()], epoch: EPOCH };
        self.ledgers.nexus.writer.write(admit).await.unwrap();
        self.admitted.send_replace(1);
    }

    async fn send(&self, caller: &Caller, params: Value) -> Result<Value, CallError> {
        soon(self.calls.call(caller, "send", params)).await
    }

    async fn told(&self, caller: &Caller, params: Value) -> String {
        self.send(caller, params).await.unwrap_err().told()
    }

    /// What is in the ledger, oldest first.
    async fn rows(&self) -> Vec<Delivery> {
        let mut rows = self.ledgers.nexus.readers.read(|connection| deliveries(connection, None, None, 1000)).await.unwrap();
        rows.reverse();
        rows
    }

    /// What arrived, once so many did and nothing waits.
    async fn arrived(&self, count: usize) -> Vec<(String, String)> {
        eventually(async || {
            let rows = self.rows().await;
            rows.iter().filter(|row| row.status == "sent").count() == count && rows.iter().all(|row| row.status == "sent")
        })
        .await;
        self.platform.0.lock().unwrap().clone()
    }
}

fn routes(platform: &Arc<Platform>) -> Routes {
    let routes = Routes::default();
    let route = |sender: Option<Arc<dyn Sender>>, text_limit: usize, here: bool| Route {
        known: true,
        here,
        sender,
        text_limit,
        capabilities: Value::Null,
        retries: 3,
        on_uncertain: OnUncertain::Hold,
        ttl_ms: 3_600_000,
        blocks: false,
        streamer: None,
        channel: None,
    };
    routes.set("fake", route(Some(platform.clone()), 0, false));
    routes.set("mail", route(Some(platform.clone()), TEXT_LIMIT_CHARS, false));
    routes.set("cli", route(Some(platform.clone()), 0, true));
    routes.set("hook", route(None, 0, false));
    routes
}

fn outbox(ledgers: &Ledgers, routes: &Routes) -> Outbox {
    let (bus, metrics) = (Bus::new(EPOCH, 64), Metrics::new());
    Outbox::new(ledgers.clone(), routes.clone(), bus, Watch::new(metrics.clone()), metrics, Expiry::new(0), EPOCH)
}

pub(super) fn settings(agents: HashMap<String, Arc<Agent>>) -> Settings {
    Settings {
        pipeline: config::Pipeline::default(),
        access: config::Access::default(),
        default_agent: "echo".to_owned(),
        agents,
        callers: Default::default(),
        time_zone: jiff::tz::TimeZone::UTC,
    }
}

/// A plugin that may do all that needs no host.
pub(super) fn caller(request: Option<CallerRequest>) -> Caller {
    let grants = vec![Grant::LedgerQuery, Grant::Llm, Grant::Search, Grant::Send].into();
    Caller { kind: CallerKind::Plugin, plugin: "greeter".to_owned(), grants, request }
}

/// A hook call about the request of event 1.
fn request(hook: &str) -> CallerRequest {
    let request = NexusRequest::new("req_1".to_owned(), 1, 1, samples::event("fake:1"));
    CallerRequest::new(&request, "fake", hook)
}

fn within(hook: &str) -> Caller {
    caller(Some(request(hook)))
}

/// With what is declared for scripts: nothing of it is left out by the call.
#[tokio::test]
async fn every_parameter_that_is_declared_is_judged() {
    let place = Place::new().await;
    let fetch = Grant::parse("fetch:a.example").unwrap();
    let grants = vec![Grant::LedgerQuery, Grant::Llm, Grant::Search, Grant::Send, fetch].into();
    let all = Caller { grants, ..within("onFinalize") };
    for (method, params, fields) in [
        ("ledger.query", json!({ "sql": "SELECT 1" }), QueryAsk::FIELDS),
        ("llm", json!({ "agent": "a", "prompt": "x" }), LlmAsk::FIELDS),
        ("search", json!({ "query": "x" }), SearchAsk::FIELDS),
        ("send", json!({ "text": "x" }), SendAsk::FIELDS),
        ("fetch", json!({ "url": "https://a.example/" }), FetchAsk::FIELDS),
    ] {
        for field in fields {
            let mut wrong = params.clone();
            wrong[*field] = json!(true);
            let told = soon(place.calls.call(&all, method, wrong)).await.unwrap_err().told();
            assert!(told.starts_with(&format!("`{field}` ")), "{method}: {told}");
        }
    }
}

#[tokio::test]
async fn what_is_not_granted_names_the_line_that_would_grant_it() {
    let place = Place::new().await;
    let nobody = Caller { grants: Arc::from(Vec::<Grant>::new()), ..within("onFinalize") };
    for (method, params, grant) in [
        ("ledger.query", json!({}), "ledger.query"),
        ("llm", json!({}), "llm"),
        ("search", json!({}), "search"),
        ("send", json!({}), "send"),
        ("fetch", json!({ "url": "https://Api.example.org:8443/x" }), "fetch:api.example.org:8443"),
    ] {
        let error = place.calls.call(&nobody, method, params).await.unwrap_err();
        assert!(matches!(error, CallError::NotGranted { .. }), "{method}: {error:?}");
        assert!(error.told().contains(&format!("plugins: {{ grants: {{ greeter: [ \"{grant}\" ] }} }}")), "{}", error.told());
    }
    for method in ["searches", "log", "ledger.write", "", "\u{1b}[2J"] {
        let told = place.calls.call(&within("onFinalize"), method, json!({})).await.unwrap_err().told();
        assert!(told.starts_with("`method` ") && told.contains(METHODS) && !told.contains('\u{1b}'), "{told}");
    }
}

#[tokio::test]
async fn the_ledgers_answer_questions_and_stay_well_whatever_is_asked() {
    let place = Place::new().await;
    let caller = caller(None);
    for (ledger, sql) in [
        ("nexus", "SELECT request_id FROM nexus_requests"),
        ("events", "SELECT seq FROM events"),
        ("agents", "SELECT label FROM sessions"),
        ("identity", "SELECT entity_id FROM entities"),
    ] {
        let answer = soon(place.calls.call(&caller, "ledger.query", json!({ "ledger": ledger, "sql": sql }))).await;
        assert!(answer.unwrap()["rows"].is_array(), "{ledger}");
    }
    for (ledger, sql) in [("nexus", "DELETE FROM deliveries"), ("events", "nonsense"), ("bus", "SELECT 1"), ("../x", "SELECT 1")] {
        let answer = soon(place.calls.call(&caller, "ledger.query", json!({ "ledger": ledger, "sql": sql }))).await;
        assert!(matches!(answer, Err(CallError::Params { .. })), "{ledger}: {answer:?}");
    }
    assert!(place.ledgers.troubles().iter().all(|(_, trouble)| trouble.is_none()), "{:?}", place.ledgers.troubles());
}

#[tokio::test]
async fn a_question_that_names_no_ledger_is_about_the_events() {
    let place = Place::new().await;
    let answer = soon(place.calls.call(&caller(None), "ledger.query", json!({ "sql": "SELECT count(*) AS n FROM events" }))).await;
    assert_eq!(answer.unwrap(), json!({ "columns": ["n"], "rows": [[0]] }));
}

#[tokio::test]
async fn what_was_said_is_found_with_its_text() {
    let place = Place::new().await;
    let caller = caller(None);
    let entry = |source: &str, text: &str| Entry {
        kind: Kind::Event,
        source: source.to_owned(),
        turn: "turn_1".to_owned(),
        session: "s".to_owned(),
        channel: "fake".to_owned(),
        sender: "ann".to_owned(),
        at: 1,
        text: text.to_owned(),
    };
    let directory = place.ledgers.nexus.readers.path().parent().unwrap().join(cortex::DIRECTORY);
    std::fs::create_dir_all(&directory).unwrap();
    let entries = [entry("fake:1", "the needle"), entry("fake:2", "another needle in a longer text")];
    cortex::apply(&mut cortex::open(&cortex::path(&directory, "echo"), 1).unwrap(), 1, &entries).unwrap();
    let found = async |params: Value| soon(place.calls.call(&caller, "search", params)).await;
    let answer = found(json!({ "query": "needle", "limit": 1 })).await.unwrap();
    let hits = answer["hits"].as_array().unwrap();
    assert_eq!((hits.len(), &hits[0]["agent"]), (1, &json!("echo")), "{answer}");
    assert!(hits[0]["text"].as_str().unwrap().contains("needle"), "{answer}");
    assert_eq!(found(json!({ "query": "needle", "agent": "echo" })).await.unwrap()["hits"].as_array().unwrap().len(), 2);
    assert_eq!(found(json!({ "query": "straw" })).await.unwrap(), json!({ "hits": [] }));
    for (params, field) in [
        (json!({}), "`query` "),
        (json!({ "query": "x", "limit": 21 }), "`limit` "),
        (json!({ "query": "x", "limit": 0 }), "`limit` "),
        (json!({ "query": "x", "agent": "nobody" }), "`agent` "),
    ] {
        let told = found(params).await.unwrap_err().told();
        assert!(told.starts_with(field), "{told}");
    }
}

#[tokio::test]
async fn more_calls_at_once_than_there_is_room_for_are_refused() {
    let place = Place::new().await;
    let held: Vec<_> = (0..CALLS_PER_PLUGIN_MAX).map(|_| place.calls.enter("greeter").unwrap()).collect();
    let refused = place.send(&within("onFinalize"), json!({ "text": "hi" })).await;
    assert!(matches!(refused, Err(CallError::Limit(_))), "{refused:?}");
    assert!(place.calls.enter("another").is_ok());
    drop(held);
    place.send(&within("onFinalize"), json!({ "text": "hi" })).await.unwrap();
}

#[tokio::test]
async fn a_message_goes_where_the_answer_goes_and_is_the_requests() {
    let place = Place::new().await;
    let answer = place.send(&within("afterRunAgent"), json!({ "text": "hi" })).await.unwrap();
    assert_eq!((&answer["messages"], &answer["repeated"]), (&json!(1), &json!(false)));
    assert_eq!(place.arrived(1).await, [("req_1:greeter:afterRunAgent.0".to_owned(), "hi".to_owned())]);
    let row = &place.rows().await[0];
    assert_eq!(answer["delivery_id"], row.delivery_id.as_str());
    assert_eq!((row.request_id.as_str(), row.event_seq, row.run_id.as_deref()), ("req_1", 1, None));
    assert_eq!((row.channel.as_str(), row.account_id.as_str(), row.target.as_str()), ("fake", "me", "p"));
    assert_eq!(row.reply_to_id.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_hook_that_is_called_again_says_nothing_twice() {
    let place = Place::new().await;
    for _ in 0..2 {
        let hook = within("afterRunAgent");
        for text in ["one", "two"] {
            place.send(&hook, json!({ "text": text })).await.unwrap();
        }
    }
    let differently = place.send(&within("afterRunAgent"), json!({ "text": "one, but later" })).await.unwrap();
    assert_eq!(differently["repeated"], true);
    place.send(&within("onFinalize"), json!({ "text": "another hook" })).await.unwrap();
    let texts: Vec<String> = place.arrived(3).await.into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["one", "two", "another hook"]);
}

#[tokio::test]
async fn a_number_of_the_plugins_own_counts_in_the_whole_request() {
    let place = Place::new().await;
    for hook in ["afterRunAgent", "onFinalize"] {
        place.send(&within(hook), json!({ "text": "once", "n": 7 })).await.unwrap();
        place.send(&within(hook), json!({ "text": "once more", "n": "bye" })).await.unwrap();
    }
    let keys: Vec<String> = place.arrived(2).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["req_1:greeter:7", "req_1:greeter:bye"]);
}

#[tokio::test]
async fn numbers_are_given_in_the_order_of_the_calls_and_not_of_their_tasks() {
    let place = Place::new().await;
    let hook = within("afterRunAgent");
    let mut calls = [json!({ "text": "first" }), json!({ "text": "second" })];
    calls.iter_mut().for_each(|params| hook.number("send", params));
    for params in calls.into_iter().rev() {
        place.send(&hook, params).await.unwrap();
    }
    let mut arrived = place.arrived(2).await;
    arrived.sort();
    let expected = [("req_1:greeter:afterRunAgent.0", "first"), ("req_1:greeter:afterRunAgent.1", "second")];
    assert_eq!(arrived, expected.map(|(key, text)| (key.to_owned(), text.to_owned())));
}

#[tokio::test]
async fn what_was_committed_and_not_sent_is_sent_by_the_next_start_and_then_known() {
    let place = Place::new().await;
    let idempotency_key = "req_1:greeter:afterRunAgent.0".to_owned();
    let piece = NewDelivery { run_id: None, idempotency_key, content: "hi".to_owned(), ..samples::delivery("dlv_before") };
    // Killed here: on disk, and in no lane.
    let say = Say { key: piece.idempotency_key.clone(), pieces: vec![piece], epoch: EPOCH };
    place.ledgers.nexus.writer.write(say).await.unwrap();
    assert_eq!(place.calls.outbox.resume().await.unwrap(), 1);
    assert_eq!(place.arrived(1).await.len(), 1);
    let again = place.send(&within("afterRunAgent"), json!({ "text": "hi" })).await.unwrap();
    assert_eq!((&again["delivery_id"], &again["repeated"]), (&json!("dlv_before"), &json!(true)));
    assert_eq!(place.arrived(1).await.len(), 1);
}

#[tokio::test]
async fn a_message_waits_for_its_request_to_be_on_disk() {
    let place = Place::unadmitted().await;
    let hook = within("afterReceiveEvent");
    let mut sending = std::pin::pin!(place.calls.call(&hook, "send", json!({ "text": "hi" })));
    let commands = || place.ledgers.nexus.writer.stats().commands.load(Ordering::Relaxed);
    let before = commands();
    assert!(futures_util::poll!(sending.as_mut()).is_pending());
    eventually(async || commands() > before).await;
    assert!(futures_util::poll!(sending.as_mut()).is_pending());
    assert!(place.rows().await.is_empty());
    place.admit().await;
    assert_eq!(soon(sending).await.unwrap()["repeated"], false);
    assert_eq!(place.arrived(1).await.len(), 1);
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_is_carried_out_once_it_began() {
    let place = Place::unadmitted().await;
    let hook = within("afterReceiveEvent");
    {
        let mut sending = std::pin::pin!(place.calls.call(&hook, "send", json!({ "text": "hi" })));
        assert!(futures_util::poll!(sending.as_mut()).is_pending());
    }
    place.admit().await;
    assert_eq!(place.arrived(1).await.len(), 1);
}

#[tokio::test]
async fn a_stop_ends_the_wait_for_a_request_that_is_never_admitted() {
    let place = Place::unadmitted().await;
    let hook = within("afterReceiveEvent");
    let mut sending = std::pin::pin!(place.calls.call(&hook, "send", json!({ "text": "hi" })));
    assert!(futures_util::poll!(sending.as_mut()).is_pending());
    soon(place.calls.outbox.stop(DEADLINE)).await;
    assert!(soon(sending).await.unwrap_err().told().contains("the daemon is stopping"));
    assert!(place.rows().await.is_empty());
}

#[tokio::test]
async fn another_adapter_and_a_caller_without_a_request_say_where_to_and_under_which_key() {
    let place = Place::new().await;
    let sql = "INSERT INTO adapter_instances (adapter, account, status, health, channel, updated_at, epoch)
               VALUES ('mail', 'me', 'running', 'healthy', 'gmail', 1, 1)";
    rusqlite::Connection::open(place.ledgers.nexus.readers.path()).unwrap().execute_batch(sql).unwrap();
    let there = json!({ "text": "A text of more than twenty characters.", "adapter": "mail", "account": "me", "to": "you" });
    place.send(&within("onFinalize"), there.clone()).await.unwrap();
    let mut keyed = there;
    keyed["key"] = json!("morning-2026-01-01");
    for repeated in [false, true] {
        let answer = place.send(&caller(None), keyed.clone()).await.unwrap();
        assert_eq!((&answer["messages"], &answer["repeated"]), (&json!(2), &json!(repeated)));
    }
    let keys: Vec<String> = place.arrived(4).await.into_iter().map(|(key, _)| key).collect();
    let start = ["req_1:greeter:onFinalize.0", "plugin:greeter:morning-2026-01-01"];
    assert_eq!(keys, [format!("{}/1", start[0]), format!("{}/2", start[0]), format!("{}/1", start[1]), format!("{}/2", start[1])]);
    let row = &place.rows().await[2];
    assert_eq!((row.request_id.as_str(), row.event_seq, row.channel.as_str()), ("", NO_REQUEST_SEQ, "gmail"));
}

#[tokio::test]
async fn what_is_for_the_control_socket_is_where_it_has_to_be() {
    let place = Place::new().await;
    let event = nexus_core::event::Event { channel: "cli".into(), account_id: "default".into(), ..samples::event("cli:1") };
    let of_cli = NexusRequest::new("req_1".to_owned(), 1, 1, event);
    let caller = caller(Some(CallerRequest::new(&of_cli, "cli", "onFinalize")));
    place.send(&caller, json!({ "text": "hi" })).await.unwrap();
    assert_eq!(place.rows().await[0].status, "sent");
    assert!(place.platform.0.lock().unwrap().is_empty(), "nothing leaves the daemon");
}

#[tokio::test]
async fn a_message_that_cannot_go_out_leaves_nothing_behind() {
    let place = Place::new().await;
    let hook = within("onFinalize");
    let there = |adapter: &str| json!({ "text": "hi", "adapter": adapter, "account": "me", "to": "you" });
    for (params, told) in [
        (json!({}), "`text` is missing"),
        (json!({ "text": "\n" }), "`text` must not be empty"),
        (json!({ "text": "x".repeat(256 * 1024 + 1) }), "`text` has 262145 bytes"),
        (there("nobody"), "`adapter` `nobody` is not configured"),
        (there("hook"), "`adapter` `hook` can't send"),
        (there("mail"), "failed to look up the adapter's channel: `mail` never ran"),
        (there("../x"), "`adapter` must be 1 to 64 characters"),
        (json!({ "text": "hi", "account": "-x" }), "`account` must be 1 to 64 characters"),
        (json!({ "text": "hi", "adapter": "mail", "to": "you" }), "`account` is missing"),
        (json!({ "text": "hi", "to": "a\nb" }), "`to` contains a control character"),
        (json!({ "text": "hi", "n": -1 }), "`n` must be a whole number"),
        (json!({ "text": "hi", "n": "a/1" }), "`n` must be a whole number"),
        (json!({ "text": "hi", "key": "k" }), "`key` is for calls without a request"),
    ] {
        let error = place.told(&hook, params).await;
        assert!(error.starts_with(told), "{error}");
    }
    for (params, told) in [
        (json!({ "text": "hi", "key": "k" }), "`account` is missing"),
        (there("fake"), "`key` is missing"),
        (json!({ "text": "hi", "n": 1 }), "`n` counts messages of a request"),
        (json!({ "text": "hi", "key": "a/1" }), "`key` must be 1 to 64 characters"),
    ] {
        let error = place.told(&caller(None), params).await;
        assert!(error.starts_with(told), "{error}");
    }
    assert!(place.rows().await.is_empty());
}

#[tokio::test]
async fn a_hook_call_sends_only_so_many() {
    let place = Place::new().await;
    let hook = within("onFinalize");
    hook.request.as_ref().unwrap().sends.store(100, Ordering::Relaxed);
    assert!(place.told(&hook, json!({ "text": "hi" })).await.contains("100 messages"));
    assert!(place.rows().await.is_empty());
}

#[tokio::test]
async fn nothing_is_left_waiting_once_everything_was_sent() {
    let place = Place::new().await;
    let hook = within("onFinalize");
    for n in 0..3 {
        place.send(&hook, json!({ "text": format!("message {n}") })).await.unwrap();
    }
    place.arrived(3).await;
    eventually(async || place.calls.outbox.depth() == 0).await;
}
