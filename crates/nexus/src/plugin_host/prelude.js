// What stands between the host and a plugin or an automation, evaluated once in each runtime, before the file. It
// owns what that sees besides the language (`console`, `nexus`) and how a hook or a handler is called. It never decides
// about time, memory or length of frames: the host does. What it needs of the language it takes at once,
// and then freezes the builtins, so that no plugin and no request can change them for later calls.
(function (answer, call, log, settings) {
  "use strict";
  const { parse, stringify } = JSON;
  const { defineProperty, freeze, getOwnPropertyDescriptor, getPrototypeOf } = Object;
  const { apply, ownKeys } = Reflect;
  const { then } = Promise.prototype;
  const { kind: KIND, hooks: HOOKS, sections: SECTIONS, calls_max: CALLS_MAX, chars_max: CHARS_MAX } = parse(settings);
  const isAutomation = KIND === "automation";
  const SHOWN_CHARS_MAX = 200;
  const PRIORITY = 100;
  // The one hook of an automation.
  const HANDLER = "handler";
  // The one hook that is given more than the request.
  const ON_ERROR = "onError";
  const AUTOMATION_KEYS = ["name", "description", "triggers", "config", "state", HANDLER];

  // What the file exports.
  let plugin;
  // The hook call whose turn it is. A turn is all that runs until the next line from the daemon.
  let current = "";
  // Hook calls whose function has not come to its end, whether or not the daemon still waits for them.
  const running = new Set();
  const hooks = new Map();
  const waiting = new Map();

  const shown = (value) => {
    if (typeof value === "string") return value;
    try {
      if (value instanceof Error) return described(value)[0];
      return stringify(value) ?? String(value);
    } catch {
      return `a ${typeof value} that can't be shown`;
    }
  };

  const quoted = (value) => (typeof value === "string" ? stringify(value) : shown(value)).slice(0, SHOWN_CHARS_MAX);

  // A message and a stack. What is thrown may be anything, also something that throws when it is read.
  const described = (error) => {
    try {
      // What the engine throws when there is no memory even for an exception.
      if (error === null) return ["InternalError: out of memory, or `throw null`", ""];
      if (!(error instanceof Error)) return [`threw ${quoted(error)}`.toWellFormed(), ""];
      const name = `${error.name}`;
      const message = `${error.message}`;
      const text = name === "Error" || name === "" ? message || "Error" : message === "" ? name : `${name}: ${message}`;
      return [text.slice(0, CHARS_MAX).toWellFormed(), `${error.stack}`.slice(0, CHARS_MAX).toWellFormed()];
    } catch {
      return ["threw something that can't be shown", ""];
    }
  };

  // Made in the name of the hook call that `whose` says.
  const ask = (whose, method, params) =>
    new Promise((resolve, reject) => {
      const id = whose(method);
      if (waiting.size >= CALLS_MAX) throw new Error(`${CALLS_MAX} calls wait for their answers already; await some`);
      // Made here, so that its stack names the place of the call.
      const failure = new Error();
      const said = call(id, method, stringify(params) ?? "null");
      if (said[0] === "!") throw new Error(said.slice(1));
      waiting.set(said, { resolve, reject, failure });
    });

  const nexusOf = (whose) =>
    freeze({
      ledger: freeze({ query: (sql, params = [], ledger = undefined) => ask(whose, "ledger.query", { sql, params, ledger }) }),
      llm: (request) => ask(whose, "llm", request),
      search: (request) => ask(whose, "search", request),
      send: (message) => ask(whose, "send", message),
      fetch: (url, init = {}) => ask(whose, "fetch", { ...init, url: `${url}` }),
    });

  // Whose turn it is says nothing about who calls, once one hook call awaits what another one settles.
  const onlyOne = (method) => {
    if (current === "") throw new Error(`\`nexus.${method}\` is only possible while a hook runs`);
    if (running.size > 1 || (running.size === 1 && !running.has(current))) {
      const given = isAutomation ? "`ctx.nexus` of the handler's `ctx`" : "the `nexus` that the hook is given, `hook(req, nexus)`";
      throw new Error(`whose \`nexus.${method}\` it is can't be told while other calls are under way; use ${given}`);
    }
    return current;
  };
  const nexus = nexusOf(onlyOne);

  const printing = (level) =>
    (...values) => log(level, values.map((value) => shown(value)).join(" ").slice(0, CHARS_MAX).toWellFormed());
  const console = freeze({
    debug: printing("debug"),
    log: printing("info"),
    info: printing("info"),
    warn: printing("warn"),
    error: printing("error"),
  });

  // On a frozen prototype `error.name = "x"` would fail for each object below it, which is legal and
  // common. With an accessor the object gets a property of its own, and the prototype stays as it is.
  const allowOverride = (prototype) => {
    for (const key of ownKeys(prototype)) {
      const found = getOwnPropertyDescriptor(prototype, key);
      if (!found.configurable || !("value" in found)) continue;
      const { value, enumerable } = found;
      const get = () => value;
      const set = function (changed) {
        if (this === prototype) throw new TypeError("the prototypes of builtins can't be changed");
        defineProperty(this, key, { value: changed, writable: true, enumerable: true, configurable: true });
      };
      defineProperty(prototype, key, { get, set, enumerable, configurable: false });
    }
  };

  // Freezes all that is reachable from the globals, but not the global object itself.
  const harden = () => {
    const seen = new Set([globalThis]);
    const queue = [];
    const add = (value) => {
      const isObject = (typeof value === "object" && value !== null) || typeof value === "function";
      if (!isObject || seen.has(value)) return;
      seen.add(value);
      queue.push(value);
    };
    const addProperties = (object) => {
      for (const key of ownKeys(object)) {
        const found = getOwnPropertyDescriptor(object, key);
        add(found.value);
        add(found.get);
        add(found.set);
      }
    };
    addProperties(globalThis);
    // What only syntax leads to.
    const iterators = [[].values(), new Map().values(), new Set().values(), ""[Symbol.iterator](), "".matchAll(/./g)];
    const functions = [async function () {}, function* () {}, async function* () {}];
    for (const hidden of [...iterators, ...functions]) add(getPrototypeOf(hidden));
    while (queue.length > 0) {
      const object = queue.pop();
      addProperties(object);
      add(getPrototypeOf(object));
      freeze(object);
    }
  };

  const exportedBy = (namespace, name) => {
    const exported = namespace[KIND] ?? namespace.default;
    if (typeof exported !== "object" || exported === null) {
      throw new Error(`the file exports no ${KIND}; write \`export const ${KIND} = { name, ... }\``);
    }
    if (exported.name !== name) {
      throw new Error(`\`${KIND}.name\` is ${quoted(exported.name)}; it must be ${quoted(name)}, as the file is called`);
    }
    return exported;
  };

  // As JSON, which is all that leaves this runtime; undefined is null.
  const plain = (key, value) => {
    const text = stringify(value ?? null);
    if (text === undefined) throw new Error(`\`automation.${key}\` has no JSON`);
    return text;
  };

  const loadAutomation = (namespace, name) => {
    const exported = exportedBy(namespace, name);
    for (const key in exported) {
      if (!AUTOMATION_KEYS.includes(key)) throw new Error(`\`automation.${key}\` is unknown; there are ${AUTOMATION_KEYS.join(", ")}`);
    }
    const { description, handler } = exported;
    if (typeof handler !== "function") throw new Error("`automation.handler` must be a function");
    if (description !== undefined && typeof description !== "string") throw new Error("`automation.description` must be a text");
    const triggers = parse(plain("triggers", exported.triggers));
    const remembers = exported.state !== undefined && exported.state !== null;
    // Copied for each call, so that no call changes what the next one gets.
    plain("config", exported.config);
    plain("state", exported.state);
    hooks.set(HANDLER, handler);
    plugin = exported;
    return stringify({ name, description: description ?? null, triggers, remembers });
  };

  // Which parts of a request it wants to see; all of it if it doesn't say.
  const sectionsOf = (exported) => {
    const sections = exported.sections ?? undefined;
    if (sections === undefined) return undefined;
    if (!Array.isArray(sections)) throw new Error(`\`plugin.sections\` is ${quoted(sections)}; it must be a list`);
    for (const section of sections) {
      if (!SECTIONS.includes(section)) {
        throw new Error(`\`plugin.sections\` has ${quoted(section)}; the sections are ${SECTIONS.join(", ")}`);
      }
    }
    return [...new Set(sections)];
  };

  const loadPlugin = (namespace, name) => {
    const exported = exportedBy(namespace, name);
    const priority = exported.priority ?? PRIORITY;
    if (!Number.isSafeInteger(priority)) throw new Error(`\`plugin.priority\` is ${quoted(priority)}; it must be a whole number`);
    for (const key in exported) {
      if (/^(after|on)[A-Z]/.test(key) && !HOOKS.includes(key)) {
        throw new Error(`\`plugin.${key}\` is no hook; the hooks are ${HOOKS.join(", ")}`);
      }
    }
    for (const hook of HOOKS) {
      const method = exported[hook];
      if (method === undefined) continue;
      if (typeof method !== "function") throw new Error(`\`plugin.${hook}\` must be a function`);
      hooks.set(hook, method);
    }
    if (hooks.size === 0) throw new Error(`the plugin has no hook; the hooks are ${HOOKS.join(", ")}`);
    plugin = exported;
    return stringify({ name, priority, hooks: [...hooks.keys()], sections: sectionsOf(exported) });
  };

  const failed = (id, error) => {
    const [message, stack] = described(error);
    answer(id, "failed", message, stack);
  };

  // What an automation's handler is called with.
  const contextOf = (text, own) => {
    const { request, state } = parse(text);
    const config = parse(plain("config", plugin.config));
    return { request, config, state: state ?? parse(plain("state", plugin.state)), nexus: own };
  };

  const advised = (id, value) => {
    if (value === undefined || value === null) {
      answer(id, "same", "", "");
      return;
    }
    const text = typeof value === "object" ? stringify(value) : undefined;
    if (text === undefined) throw new Error(`returned ${quoted(value)}; a handler returns nothing or an object`);
    answer(id, "returned", text, "");
  };

  // The baseline of a change is the request as this language writes it, not as it came: 1.0 becomes 1.
  const changed = (id, request, text, value) => {
    if (value === "skip") {
      answer(id, "skip", "", "");
      return;
    }
    if (value !== undefined && value !== request) {
      throw new Error(`returned ${quoted(value)}; a hook returns nothing, "skip" or the request that it was given`);
    }
    const after = stringify(request);
    if (after === undefined) throw new Error("left a request that has no JSON");
    const before = after === text ? text : stringify(parse(text));
    if (after === before) answer(id, "same", "", "");
    else answer(id, "changed", before, after);
  };

  // What a function of the file is called with, and what becomes of its value. The `nexus` is its own: it calls in
  // the name of this hook call, whenever and wherever it is used.
  const callOfPlugin = (id, hook, text, error, own) => {
    const request = parse(text);
    const args = hook === ON_ERROR ? [request, error === "" ? undefined : parse(error), own] : [request, own];
    return { args, take: (value) => changed(id, request, text, value) };
  };
  const callOfAutomation = (id, hook, text, error, own) => ({ args: [contextOf(text, own)], take: (value) => advised(id, value) });
  const callOf = isAutomation ? callOfAutomation : callOfPlugin;

  const run = (id, hook, text, error) => {
    current = id;
    running.add(id);
    // At the end of the function, and before what is made of its value.
    const ended = (told, value) => {
      running.delete(id);
      try {
        told(value);
      } catch (thrown) {
        failed(id, thrown);
      }
    };
    const threw = (thrown) => failed(id, thrown);
    try {
      const method = hooks.get(hook);
      if (method === undefined) throw new Error(`the ${KIND} has no hook \`${hook}\``);
      const { args, take } = callOf(id, hook, text, error, nexusOf(() => id));
      const value = apply(method, plugin, args);
      if (value instanceof Promise) apply(then, value, [(result) => ended(take, result), (thrown) => ended(threw, thrown)]);
      else ended(take, value);
    } catch (thrown) {
      ended(threw, thrown);
    }
  };

  const settle = (id, number, result, error) => {
    const asked = waiting.get(number);
    if (asked === undefined) return;
    waiting.delete(number);
    current = id;
    if (error === "") {
      asked.resolve(parse(result));
    } else {
      asked.failure.message = error;
      asked.reject(asked.failure);
    }
  };

  for (const [name, value] of [["nexus", nexus], ["console", console]]) {
    defineProperty(globalThis, name, { value, enumerable: true, writable: false, configurable: false });
  }
  const errors = ownKeys(globalThis)
    .map((key) => getOwnPropertyDescriptor(globalThis, key).value)
    .filter((value) => typeof value === "function" && (value === Error || getPrototypeOf(value) === Error));
  for (const prototype of [Object.prototype, ...errors.map((error) => error.prototype)]) allowOverride(prototype);
  harden();
  return { load: isAutomation ? loadAutomation : loadPlugin, run, settle };
});
