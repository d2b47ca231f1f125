//! One QuickJS runtime with one plugin in it. It owns the limits of time, memory and stack, and how
//! exceptions are read; it never reads or writes a frame, and never decides what a failure means for others.

use super::stage::Stage;
use super::trouble::Trouble;
use super::watchdog::Watchdog;
use super::{Limits, Plugin};
use nexus_core::config::PluginSection;
use nexus_core::hook::Hook;
use rquickjs::context::EvalOptions;
use rquickjs::{Coerced, Context, Ctx, Exception, Function, Module, Object, Persistent, Runtime, Value};
use serde_json::json;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::{Duration, Instant};

const PRELUDE: &str = include_str!("prelude.js");
/// The prelude's name in stacks: no file's.
const PRELUDE_NAME: &str = "nexus:host";
/// Calls of one plugin that wait for their answers.
const CALLS_OPEN_MAX: usize = 64;
/// Longest message, stack or line for the log, in UTF-16 units.
const TEXT_CHARS_MAX: usize = 4096;
/// What a runtime gets on top of its limit to say that it has none left.
const LAST_WORDS_BYTES: usize = 1024 * 1024;

/// How a turn ended.
#[derive(Debug)]
pub(super) enum Ended {
    Well,
    /// It took longer than it may. The runtime is of no use any more.
    Late,
    /// Memory was used up, or an exception came out of the prelude. The runtime is of no use any more.
    Broken(Trouble),
}

/// A runtime, its context, and the functions of the prelude; values go before their context, and that
/// before its runtime.
pub(super) struct Engine {
    run: Persistent<Function<'static>>,
    settle: Persistent<Function<'static>>,
    context: Context,
    runtime: Runtime,
    limits: Limits,
    stage: Rc<Stage>,
    watchdog: Rc<Watchdog>,
    file: Rc<str>,
}

impl Engine {
    /// A fresh runtime with the plugin loaded, and what the plugin says of itself, as JSON.
    ///
    /// # Errors
    /// Why the file can't be loaded.
    pub(super) fn start(plugin: &Plugin, limits: Limits, stage: &Rc<Stage>, watchdog: &Rc<Watchdog>) -> Result<(Self, String), Trouble> {
        let runtime = Runtime::new().map_err(|error| Trouble::new(format!("failed to make a runtime: {error}")))?;
        runtime.set_memory_limit(limits.memory_bytes);
        runtime.set_max_stack_size(limits.stack_bytes);
        watch(&runtime, stage, &plugin.file);
        let context = Context::full(&runtime).map_err(|error| Trouble::new(format!("failed to make a context: {error}")))?;
        begin(stage, watchdog, limits.call);
        let loaded = context.with(|ctx| load(&ctx, plugin, stage));
        watchdog.rest();
        let is_late = stage.end();
        let last_words = |error: &rquickjs::Error| read_error(&runtime, &context, limits, error, &plugin.file);
        let (run, settle, manifest) = match loaded {
            Ok(loaded) if !is_late => loaded,
            Ok(_) => return Err(slow(limits)),
            Err(_) if is_late => return Err(slow(limits)),
            Err(error) => return Err(last_words(&error).about_import(&plugin.source, &plugin.file)),
        };
        let (stage, watchdog, file) = (Rc::clone(stage), Rc::clone(watchdog), Rc::clone(&plugin.file));
        Ok((Self { run, settle, context, runtime, limits, stage, watchdog, file }, manifest))
    }

    /// One turn: a hook begins. `error` is JSON, or empty.
    pub(super) fn run(&self, budget: Duration, id: u64, hook: &str, request: &str, error: &str) -> Ended {
        let id = id.to_string();
        self.turn(budget, |ctx| self.run.clone().restore(ctx)?.call((id.as_str(), hook, request, error)))
    }

    /// One turn: a call has come to its end, and the hook that awaits it goes on.
    pub(super) fn settle(&self, budget: Duration, id: u64, call: u64, outcome: &Result<&str, String>) -> Ended {
        let (id, call) = (id.to_string(), call.to_string());
        let (result, error) = match outcome {
            Ok(result) => (*result, ""),
            Err(error) => ("", error.as_str()),
        };
        self.turn(budget, |ctx| self.settle.clone().restore(ctx)?.call((id.as_str(), call.as_str(), result, error)))
    }

    fn turn(&self, budget: Duration, enter: impl FnOnce(&Ctx<'_>) -> rquickjs::Result<()>) -> Ended {
        begin(&self.stage, &self.watchdog, budget);
        let entered = self.context.with(|ctx| enter(&ctx));
        let broken = match entered {
            Ok(()) => self.finish_jobs(),
            Err(error) => Some(self.read_error(&error)),
        };
        let broken = broken.or_else(|| self.stage.tell_rejections());
        self.watchdog.rest();
        match (self.stage.end(), broken) {
            (true, _) => Ended::Late,
            (false, Some(trouble)) => Ended::Broken(trouble),
            (false, None) => Ended::Well,
        }
    }

    /// Runs what is due, until nothing is or the time is over. What went wrong with the runtime itself.
    fn finish_jobs(&self) -> Option<Trouble> {
        while !self.stage.is_late() {
            let failed = match self.runtime.execute_pending_job() {
                Ok(true) => continue,
                Ok(false) => return None,
                Err(failed) => failed,
            };
            self.runtime.set_memory_limit(self.limits.memory_bytes.saturating_add(LAST_WORDS_BYTES));
            let trouble = failed.0.with(|ctx| read(&ctx, &ctx.catch(), &self.file));
            self.runtime.set_memory_limit(self.limits.memory_bytes);
            if trouble.is_memory() {
                return Some(trouble);
            }
            if !self.stage.is_late() {
                self.stage.log("error", format!("in a microtask: {}", trouble.message));
            }
        }
        None
    }

    fn read_error(&self, error: &rquickjs::Error) -> Trouble {
        read_error(&self.runtime, &self.context, self.limits, error, &self.file)
    }
}

fn slow(limits: Limits) -> Trouble {
    Trouble::new(format!("took longer than {} ms to be loaded", limits.call.as_millis()))
}

fn begin(stage: &Stage, watchdog: &Watchdog, budget: Duration) {
    stage.begin(Instant::now() + budget, budget);
    watchdog.expect_within(budget);
}

/// Has the runtime look at its time, and tell of rejected promises.
fn watch(runtime: &Runtime, stage: &Rc<Stage>, file: &Rc<str>) {
    let time = Rc::clone(stage);
    runtime.set_interrupt_handler(Some(Box::new(move || time.is_late())));
    let (stage, file) = (Rc::clone(stage), Rc::clone(file));
    runtime.set_host_promise_rejection_tracker(Some(Box::new(move |ctx, promise, reason, awaited| {
        let mut identity = DefaultHasher::new();
        promise.hash(&mut identity);
        if awaited {
            stage.awaited(identity.finish());
        } else {
            stage.rejected(identity.finish(), read(&ctx, &reason, &file));
        }
    })));
}

/// What [`load`] brings: the prelude's `run` and `settle`, and the manifest.
type Loaded = (Persistent<Function<'static>>, Persistent<Function<'static>>, String);

fn load(ctx: &Ctx<'_>, plugin: &Plugin, stage: &Rc<Stage>) -> rquickjs::Result<Loaded> {
    let prelude = prelude(ctx, stage, plugin)?;
    let (module, evaluated) = Module::declare(ctx.clone(), &*plugin.file, plugin.source.as_str())?.eval()?;
    match evaluated.finish::<()>() {
        Err(rquickjs::Error::WouldBlock) => {
            return Err(Exception::throw_message(ctx, "a top-level `await` of something that never comes; await inside hooks"));
        }
        finished => finished?,
    }
    let load: Function<'_> = prelude.get("load")?;
    let manifest: String = load.call((module.namespace()?, plugin.name.as_str()))?;
    let run: Function<'_> = prelude.get("run")?;
    let settle: Function<'_> = prelude.get("settle")?;
    Ok((Persistent::save(ctx, run), Persistent::save(ctx, settle), manifest))
}

/// Evaluates the prelude, with the functions by which it speaks.
fn prelude<'js>(ctx: &Ctx<'js>, stage: &Rc<Stage>, plugin: &Plugin) -> rquickjs::Result<Object<'js>> {
    let mut options = EvalOptions::default();
    options.filename = Some(PRELUDE_NAME.to_owned());
    let prelude: Function<'js> = ctx.eval_with_options(PRELUDE, options)?;
    let (heard, name) = (Rc::clone(stage), Rc::clone(&plugin.file));
    let answer = Function::new(ctx.clone(), move |id: String, kind: String, first: String, second: String| {
        heard.answer(&id, &kind, first, second, &name);
    })?;
    let heard = Rc::clone(stage);
    let call = Function::new(ctx.clone(), move |id: String, method: String, params: String| heard.call(&id, method, &params))?;
    let heard = Rc::clone(stage);
    let log = Function::new(ctx.clone(), move |level: String, message: String| heard.log(level_of(&level), message))?;
    let kind = plugin.kind.noun();
    let settings = json!({
        "kind": kind, "hooks": Hook::WORDS, "sections": PluginSection::WORDS, "calls_max": CALLS_OPEN_MAX, "chars_max": TEXT_CHARS_MAX,
    });
    prelude.call((answer, call, log, settings.to_string()))
}

fn level_of(level: &str) -> &'static str {
    match level {
        "debug" => "debug",
        "warn" => "warn",
        "error" => "error",
        _ => "info",
    }
}

/// An error of the bindings as trouble; the pending exception if it is one, with some memory to read it by.
fn read_error(runtime: &Runtime, context: &Context, limits: Limits, error: &rquickjs::Error, file: &str) -> Trouble {
    runtime.set_memory_limit(limits.memory_bytes.saturating_add(LAST_WORDS_BYTES));
    let trouble = context.with(|ctx| {
        if error.is_exception() || ctx.has_exception() { read(&ctx, &ctx.catch(), file) } else { Trouble::new(error.to_string()) }
    });
    runtime.set_memory_limit(limits.memory_bytes);
    trouble
}

/// What was thrown, which may be anything. Null is what the engine throws when there is no memory even for
/// an exception.
fn read(ctx: &Ctx<'_>, thrown: &Value<'_>, file: &str) -> Trouble {
    let text = |value: rquickjs::Result<Coerced<String>>| value.map_or_else(|_| String::new(), |text| text.0);
    let exception = thrown.as_object().and_then(|object| Exception::from_object(object.clone()));
    let trouble = match exception {
        Some(exception) => {
            let (name, message) = (text(exception.get("name")), text(exception.get("message")));
            let message = match (name.as_str(), message.as_str()) {
                (_, "") => name,
                ("" | "Error", _) => message,
                _ => format!("{name}: {message}"),
            };
            Trouble::thrown(cut(message), &text(exception.get("stack")), file)
        }
        None if thrown.is_null() => Trouble::new("InternalError: out of memory, or `throw null`"),
        None => Trouble::new(cut(format!("threw {}", text(thrown.get())))),
    };
    // Reading may have thrown once more.
    drop(ctx.catch());
    trouble
}

/// At most so many characters of a text.
fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(TEXT_CHARS_MAX) {
        text.truncate(end);
    }
    text
}
