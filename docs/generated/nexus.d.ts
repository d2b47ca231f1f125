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
  delivery_result?: DeliveryResult | null;
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
  attachments?: Array<Attachment> | null;
  metadata?: Record<string, any> | null;
}

/** Where a message was said. */
export type PeerKind = "dm" | "group" | "channel";

/** What came with a message, by the adapter protocol. It is kept as the adapter wrote it, and nothing of it is checked. */
export interface Attachment {
  id?: string | null;
  filename?: string | null;
  /** A media type, such as `image/png`. */
  content_type?: string | null;
  size_bytes?: number | null;
  url?: string | null;
  path?: string | null;
}

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
  /** A policy that allows it names its content type. */
  names_content_type?: boolean;
  /** One sentence for each policy in config order, then one for the outcome. */
  why?: Array<string>;
}

/** What a policy does with the requests that it matches. */
export type Effect = "allow" | "deny";

/** What an allowed request may do. */
export interface Permissions {
  /** Tools that the agent may use. */
  tools?: Tools;
  /** Names of credentials, which the agent and plugins are told of. Information only: the daemon hands out none by it, and refuses none. */
  credentials?: Array<string>;
  /** How much of what was said before the agent is told: none, minimal (of the session the turns in which nobody else spoke), contextual (the session) or full (the session, and all that it was ever asked). */
  data_access?: DataAccess;
}

/** Tools that an agent may use; a denied tool is denied even if it is allowed too. */
export interface Tools {
  /** Allowed tools. */
  allow?: Array<string>;
  /** Denied tools. */
  deny?: Array<string>;
}

/** How much of what was said before an agent is told with a request. */
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
  /** What the run is recorded as, once it has ended. */
  turn_id?: string | null;
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
  /** Messages of those turns that were kept back by `data_access`. */
  history_withheld?: number;
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
  tool_calls: Array<ToolOutline>;
  usage: Usage | null;
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

/** A question to a ledger. */
export interface QueryAsk {
  /** One SELECT, with places `?1`, `?2`, ... */
  sql: string;
  /** What stands in the places. */
  params?: Array<Bound> | null;
  /** `events` if none is named. */
  ledger?: LedgerName | null;
}

/** A value for a place in a question. */
export type Bound = null | boolean | number | string;

/** The ledgers that can be asked. */
export type LedgerName = "events" | "agents" | "identity" | "nexus";

/** What a ledger has. */
export interface QueryAnswer {
  columns: Array<string>;
  rows: Array<Array<Cell>>;
}

/** What can stand in a row. */
export type Cell = null | number | string;

/** A question to an agent that is a model. */
export interface LlmAsk {
  agent: string;
  prompt: string;
  /** Instead of the agent's own system prompt. */
  system?: string | null;
  /** Instead of the agent's own. */
  max_tokens?: number | null;
}

/** What a model said. */
export interface LlmAnswer {
  text: string;
  usage: Usage;
  model?: string | null;
  stop_reason: StopReason;
}

/** Tokens that were used, where anybody counts. */
export interface Usage {
  input_tokens?: number | null;
  output_tokens?: number | null;
  /** Some of it is counted from the length of texts, since the model didn't. */
  estimated?: boolean;
}

/** Why the answer ended. */
export type StopReason = "end_turn" | "max_tokens" | "timeout" | "aborted" | "error";

/** What is looked for in what agents were asked and said. */
export interface SearchAsk {
  /** All of these words. */
  query: string;
  /** 1 to 20; 5 if it isn't given. */
  limit?: number | null;
  /** Of all agents if none is named. */
  agent?: string | null;
}

/** What was found, best first. */
export interface SearchAnswer {
  hits: Array<SearchHit>;
}

/** A text that was found. */
export interface SearchHit {
  agent: string;
  kind: Kind;
  /** The event's id, or the turn's. */
  source: string;
  session: string;
  channel: string;
  sender: string;
  /** Unix milliseconds. */
  at: number;
  /** The less, the better. */
  score: number;
  /** The text around what was found. */
  snippet: string;
  text: string;
}

/** What an entry is. */
export type Kind = "event" | "turn";

/** A message; without more than its text it goes where the request's answer goes. */
export interface SendAsk {
  text: string;
  to?: string | null;
  /** Another one needs `account` and `to`. */
  adapter?: string | null;
  account?: string | null;
  thread_id?: string | null;
  /** Which message of the request it is: each is sent once. */
  n?: SendNumber | null;
  /** The same where there is no request. */
  key?: string | null;
}

/** A whole number, or a short name. */
export type SendNumber = number | string;

/** What became of a message: it is in the ledger. */
export interface SendAnswer {
  /** Of the first of its messages. */
  delivery_id: string;
  /** Into how many it was split. */
  messages: number;
  /** It was there before, and is not sent again. */
  repeated: boolean;
}

/** One HTTP request. */
export interface FetchAsk {
  url: string;
  /** `GET` if it isn't given. */
  method?: string | null;
  headers?: Record<string, string> | null;
  body?: string | null;
}

/** What an HTTP server answered. */
export interface FetchAnswer {
  status: number;
  /** Those that came several times in one text. */
  headers: Record<string, string>;
  body: string;
  encoding: Encoding;
}

/** How `body` is written. */
export type Encoding = "text" | "hex";

/** What a request has of a call: not what went in and out, which the agents ledger has. */
export interface ToolOutline {
  call_id: string;
  name: string;
  status: string;
  summary?: string | null;
}

/** What stage 7 came to, as a request's `delivery_result` tells it. */
export interface DeliveryResult {
  deliveries: number;
  /** Those that were waited for; nothing of an answer without an agent. */
  settled?: Array<DeliveryOutcome> | null;
  pending: number;
}

/** How one delivery ended. */
export interface DeliveryOutcome {
  delivery_id: string;
  status: string;
  error?: string | null;
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
    /** Reads a ledger. Grant: `ledger.query`. */
    query(sql: QueryAsk["sql"], params?: QueryAsk["params"], ledger?: QueryAsk["ledger"]): Promise<QueryAnswer>;
  };
  /** Asks an agent that is a model. Grant: `llm`. */
  llm(ask: LlmAsk): Promise<LlmAnswer>;
  /** Searches what agents were asked and said. Grant: `search`. */
  search(ask: SearchAsk): Promise<SearchAnswer>;
  /** Sends a message. Grant: `send`. */
  send(ask: SendAsk): Promise<SendAnswer>;
  /** One HTTP request. Grant: `fetch:HOST`. */
  fetch(url: FetchAsk["url"], init?: Omit<FetchAsk, "url">): Promise<FetchAnswer>;
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
