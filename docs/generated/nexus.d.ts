// What a plugin or an automation of Nexus is written against. Written by `nexus __generate`; change the types, not
// this file.
//
// Put it beside yours, and use it with `import type { Plugin, Automation } from "./nexus"`. Useful in a
// tsconfig.json: "lib": ["es2023"] (there is no DOM), "erasableSyntaxOnly": true, "types": [].

/** A request with one section per stage, as hooks see it and as its snapshot is kept. */
export interface NexusRequest {
  request_id: string;
  /** The event's place in the ledger: the only order there is. */
  event_seq: number;
  /** Unix milliseconds. */
  created_at: number;
  event: Event;
  delivery: DeliveryTarget;
  principal?: PrincipalSection | null;
  access?: Decision | null;
  triggers?: TriggersSection | null;
  agent?: AgentSection | null;
  /** What a plugin has the agent told before the message. */
  context?: string | null;
  response?: ResponseSection | null;
  delivery_result?: any;
  pipeline: Array<StageTrace>;
  status: Status;
  reason?: string | null;
}

/** An accepted event, owned, as the ledger holds it and as a request shows it. */
export interface Event {
  event_id: string;
  /** Unix milliseconds by the platform's clock. */
  timestamp: number;
  content: string;
  content_type: string;
  channel: string;
  account_id: string;
  sender_id: string;
  peer_id: string;
  peer_kind: PeerKind;
  sender_name?: string | null;
  thread_id?: string | null;
  reply_to_id?: string | null;
  attachments?: any;
  metadata?: any;
}

/** Where a message was said. */
export type PeerKind = "dm" | "group" | "channel";

/** Where an answer goes. */
export interface DeliveryTarget {
  channel: string;
  account_id: string;
  target: string;
  thread_id?: string | null;
  reply_to_id?: string | null;
}

/** Who speaks, as stage 2 found. */
export interface PrincipalSection {
  type: PrincipalType;
  entity_id?: string | null;
  name?: string | null;
  relationship?: string | null;
  tags: Array<string>;
  /** `channel:sender` pairs known to be this principal. */
  identities: Array<string>;
}

/** What kind of principal speaks. */
export type PrincipalType = "owner" | "known" | "unknown" | "system" | "webhook" | "agent";

/** The answer, with what it was decided by. */
export interface Decision {
  decision: Effect;
  matched_policy?: string | null;
  permissions: Permissions;
  /** The agent the matched policy routes to. */
  agent?: string | null;
  /** The matched policy's session template, for [`session_label`]. */
  session_key?: string | null;
  /** What becomes of the message while its session is busy, as the matched policy says. */
  queue_mode?: QueueMode;
  /** How many may wait for their session. */
  queue?: Queue;
  /** How often a minute the matched policy lets this principal ask on this channel. Whoever carries the decision out counts, with [`Rates`]. */
  per_minute?: number | null;
  /** One sentence for each policy in config order, then one for the outcome. */
  why?: Array<string>;
}

/** What a policy does with the requests that it matches. */
export type Effect = "allow" | "deny";

/** What an allowed request may do. */
export interface Permissions {
  /** Tools that the agent may use. */
  tools?: Tools;
  /** Credentials that the agent may use. */
  credentials?: Array<string>;
  /** How much of what is stored the agent may see: none, minimal, contextual or full. */
  data_access?: DataAccess;
}

/** Tools that an agent may use; a denied tool is denied even if it is allowed too. */
export interface Tools {
  /** Allowed tools. */
  allow?: Array<string>;
  /** Denied tools. */
  deny?: Array<string>;
}

/** How much of what is stored an agent may see for a request. */
export type DataAccess = "none" | "minimal" | "contextual" | "full";

/** What becomes of a message that comes while its session is busy. */
export type QueueMode = "followup" | "collect" | "interrupt" | "steer";

/** How many messages may wait for their session. */
export interface Queue {
  /** So many at most, 1 to 1000000; without it as many as come. */
  cap?: number | null;
  /** Which is dropped when it is one too many, old or new; its request ends as expired. */
  drop?: QueueDrop;
}

/** Which of too many waiting messages is dropped. */
export type QueueDrop = "old" | "new";

/** What stage 4 did. */
export interface TriggersSection {
  evaluated: number;
  fired: number;
  handled: boolean;
  handled_by?: string | null;
  /** The first automation that fired. */
  fired_by?: string | null;
  /** What those that fired ask the agent. */
  context?: string | null;
  /** The automations that were asked, in their order. */
  results?: Array<AutomationTrace>;
  /** What the agent is told before the message. */
  enrichment?: string | null;
  /** The agent that answers, whatever the policy says. */
  routing_override?: string | null;
}

/** One automation's part in stage 4. */
export interface AutomationTrace {
  automation: string;
  /** Milliseconds with fraction, by the monotonic clock. */
  ms: number;
  /** What it did: `fire`, `enrich`, `handled`, `reply`, `disable`, `state`. */
  did?: Array<string>;
  /** It said so about this event before, and was not asked again. */
  repeated?: boolean;
  error?: string | null;
}

/** Which agent answers, chosen by stage 5. */
export interface AgentSection {
  agent_id: string;
  session_label: string;
  parent_turn_id?: string | null;
  run_id?: string | null;
  model?: string | null;
  provider?: string | null;
  /** The agent that answered in place of this one. */
  answered_by?: string | null;
  /** Why this one did not answer. */
  fallback_from?: string | null;
  /** Messages of earlier turns given along, and how many were left out by the budget. */
  history_messages: number;
  history_dropped: number;
  /** Other texts of the past that were found for the message and given along. */
  memory_matches?: number;
  /** Why none could be looked for. */
  memory_error?: string | null;
  /** Ids of the requests that shared the run. */
  fellows?: Array<string>;
}

/** What the agent answered. */
export interface ResponseSection {
  content: string;
  tool_calls: Array<any>;
  usage: any;
  stop_reason: string;
  duration_ms: number;
  error?: string | null;
}

/** One stage as it went. */
export interface StageTrace {
  stage: Stage;
  /** Unix milliseconds. */
  started_at: number;
  /** Milliseconds with fraction, by the monotonic clock. */
  duration_ms: number;
  exit_reason?: string | null;
  error?: string | null;
  /** The plugins that were asked behind it, in their order. */
  hooks?: Array<HookTrace>;
}

/** The eight stages, in order. */
export type Stage = "receiveEvent" | "resolveIdentity" | "resolveAccess" | "runAutomations" | "assembleContext" | "runAgent" | "deliverResponse" | "finalize";

/** One plugin's part in a stage. */
export interface HookTrace {
  plugin: string;
  /** Milliseconds with fraction, by the monotonic clock. */
  ms: number;
  error?: string | null;
}

/** Where a request stands. The last five are terminal and never rewritten. */
export type Status = "waiting" | "processing" | "interrupted" | "completed" | "denied" | "handled_by_automation" | "failed" | "expired";

/** What a handler returns. Nothing of it set means that it has nothing to say about the request. */
export interface Advice {
  /** An agent is to answer: for events of the timer, which go to none by themselves. */
  fire?: boolean;
  /** That agent, whatever the policy says; only with `fire`. */
  agent?: string | null;
  /** What the agent is asked, or, of an event that has a text, told besides; only with `fire`. */
  context?: string | null;
  /** What the agent is told before the message, whoever that is. */
  enrich?: string | null;
  /** The request has been seen to, and ends here. */
  handled?: boolean;
  /** The answer, without any agent; the request ends with it. */
  reply?: string | null;
  /** The automation is not asked any more, until a person enables it. */
  disable?: boolean;
  /** What it wants to know the next time. Only of an automation that has a `state`. */
  state?: any;
}

/** Which requests an automation is asked about. All that is given must fit; nothing given fits every request. */
export interface Triggers {
  principal?: PrincipalTrigger;
  event?: EventTrigger;
}

/** Who speaks, as stage 2 found. */
export interface PrincipalTrigger {
  /** Kind of principal. */
  type?: PrincipalType | null;
  relationship?: string | null;
  /** Tags that the contact must all have. */
  tags?: Array<string>;
  /** Entity id of the contact. */
  entity?: string | null;
  name?: string | null;
}

/** What came, and where. */
export interface EventTrigger {
  /** Channels, such as `timer` or `webhook`; none means all. */
  channels?: Array<string>;
  /** Content types, such as `text` or `system/heartbeat`; none means all. */
  types?: Array<string>;
}

/** What went wrong, and in which stage. */
export interface StageError {
  stage: Stage;
  message: string;
}

/** Nothing goes on with the request as the hook left it; `"skip"` ends it. */
export type Outcome = void | "skip" | NexusRequest;

/**
 * What a plugin's file exports as `plugin`, or as its default. A hook may be async: its request waits for it.
 * What it changes in `req` is taken over where that hook may change it, and refused elsewhere. `nexus` is its own:
 * what it asks for is asked in the name of this hook call.
 */
export interface Plugin {
  /** The file's name without its ending. */
  name: string;
  /** Lower ones come first; 100 if it isn't given. */
  priority?: number;
  /** What it is given of a request, besides `request_id`; all of it if this isn't given. */
  sections?: Array<"event" | "delivery" | "principal" | "access" | "triggers" | "agent" | "context" | "response" | "delivery_result" | "pipeline" | "status">;
  afterReceiveEvent?(req: NexusRequest, nexus: Nexus): Outcome | Promise<Outcome>;
  afterResolveIdentity?(req: NexusRequest, nexus: Nexus): Outcome | Promise<Outcome>;
  afterResolveAccess?(req: NexusRequest, nexus: Nexus): Outcome | Promise<Outcome>;
  afterRunAutomations?(req: NexusRequest, nexus: Nexus): Outcome | Promise<Outcome>;
  afterAssembleContext?(req: NexusRequest, nexus: Nexus): Outcome | Promise<Outcome>;
  afterRunAgent?(req: NexusRequest, nexus: Nexus): Outcome | Promise<Outcome>;
  afterDeliverResponse?(req: NexusRequest, nexus: Nexus): Outcome | Promise<Outcome>;
  onFinalize?(req: NexusRequest, nexus: Nexus): Outcome | Promise<Outcome>;
  onError?(req: NexusRequest, error: StageError, nexus: Nexus): Outcome | Promise<Outcome>;
}

/** What an automation's handler is called with. All data in it is a copy: what counts is what the handler returns. */
export interface AutomationContext {
  /** As stage 3 left it. */
  request: NexusRequest;
  /** `config` of the file. */
  config: any;
  /** What it returned last as `state`; at first `state` of the file. */
  state: any;
  /** Its own: what it asks for is asked in the name of this call. */
  nexus: Nexus;
}

/** What an automation's file exports as `automation`, or as its default. */
export interface Automation {
  /** The file's name without its ending. */
  name: string;
  description?: string;
  /** Which requests it is asked about; without them every one. */
  triggers?: Triggers;
  config?: any;
  /** What it knows at first. One that has a state is asked about one event at a time. */
  state?: any;
  handler(ctx: AutomationContext): Advice | void | Promise<Advice | void>;
}

/**
 * Each call needs a grant, `plugins.grants` or `automations.grants` in nex.yaml, and is only possible while a hook or a
 * handler runs.
 */
export interface Nexus {
  ledger: {
    /** Reads a ledger, `events` if none is named. Grant: `ledger.query`. */
    query(
      sql: string,
      params?: Array<string | number | boolean | null>,
      ledger?: "events" | "agents" | "identity" | "nexus",
    ): Promise<{ columns: string[]; rows: any[][] }>;
  };
  /** Asks an agent that is a model. Grant: `llm`. */
  llm(request: { agent: string; prompt: string; system?: string; max_tokens?: number }): Promise<{ text: string; usage: any }>;
  /** Searches what agents were asked and said; 1 to 20 hits, 5 if `limit` isn't given. Grant: `search`. */
  search(request: { query: string; limit?: number; agent?: string }): Promise<{ hits: any[] }>;
  /** Sends a message; without `to` where the request came from. Grant: `send`. */
  send(message: {
    text: string;
    to?: string;
    adapter?: string;
    account?: string;
    thread_id?: string;
    n?: number | string;
  }): Promise<{ delivery_id: string; messages: number; repeated: boolean }>;
  /** One HTTP request. Grant: `fetch:HOST`. */
  fetch(
    url: string,
    init?: { method?: string; headers?: Record<string, string>; body?: string },
  ): Promise<{ status: number; headers: Record<string, string>; body: string; encoding: "text" | "hex" }>;
}

/** Lines for the daemon's log: at most 200 in 10 s. */
export interface Console {
  debug(...values: unknown[]): void;
  log(...values: unknown[]): void;
  info(...values: unknown[]): void;
  warn(...values: unknown[]): void;
  error(...values: unknown[]): void;
}

declare global {
  /** Refused while other calls are under way: use the `nexus` that a hook or a handler is given. */
  const nexus: Nexus;
  const console: Console;
  // There is no setTimeout, no fetch of its own, no process, no require and no import of values.
}
