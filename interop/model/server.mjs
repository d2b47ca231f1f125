// The model behind HTTP on the loopback, as OpenAI's chat completions stream, and an account of what was asked
// and how it ended, for the suite to compare with. Called with the directory of the native module and the model's
// file; says its port in the first line of stdout, and ends when its stdin does.

import http from "node:http";
import { CONTEXT_TOKENS, Model } from "./model.mjs";

const BODY_BYTES_MAX = 1024 * 1024;
const RETRY_AFTER_S = 1;
// The names it has. Under the second one it has more to say until it's stopped.
const MODEL = "smollm2";
const ENDLESS = "smollm2-endless";

const [directory, file] = process.argv.slice(2);
const model = await Model.load(directory, file);
const account = [];

class Refusal extends Error {
  constructor(status, message, headers = {}) {
    super(message);
    this.status = status;
    this.headers = headers;
  }
}

async function body(request) {
  const parts = [];
  let bytes = 0;
  for await (const part of request) {
    bytes += part.length;
    if (bytes > BODY_BYTES_MAX) throw new Refusal(413, "the request is too large");
    parts.push(part);
  }
  try {
    return JSON.parse(Buffer.concat(parts).toString());
  } catch {
    throw new Refusal(400, "the request is not JSON");
  }
}

function isMessage(message) {
  return ["system", "user", "assistant"].includes(message?.role) && typeof message.content === "string";
}

// What is asked for, or why it can't be had.
function read(asked) {
  if (asked.model !== MODEL && asked.model !== ENDLESS) throw new Refusal(404, `there is no model ${asked.model}`);
  if (asked.stream !== true) throw new Refusal(400, "only streamed answers are given");
  if (!Array.isArray(asked.messages) || !asked.messages.every(isMessage)) throw new Refusal(400, "messages that aren't text");
  const prompt = model.prompt(asked.messages);
  if (prompt.length >= CONTEXT_TOKENS) throw new Refusal(400, `the messages have more than ${CONTEXT_TOKENS} tokens`);
  const tokensMax = asked.max_tokens ?? asked.max_completion_tokens ?? CONTEXT_TOKENS;
  if (!Number.isInteger(tokensMax) || tokensMax < 1) throw new Refusal(400, "max_tokens must be a whole number from 1");
  return { prompt, tokensMax };
}

// Writes the events of one answer.
function stream(response, name, id) {
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
  const created = Math.floor(Date.now() / 1000);
  const event = (fields) => {
    const chunk = { id, object: "chat.completion.chunk", created, model: name, ...fields };
    response.write(`data: ${JSON.stringify(chunk)}\n\n`);
  };
  const choice = (delta, finish_reason = null) => event({ choices: [{ index: 0, delta, finish_reason }] });
  return {
    begin: () => choice({ role: "assistant", content: "" }),
    say: (content) => choice({ content }),
    end(reason, usage) {
      choice({}, reason);
      if (usage) event({ choices: [], usage });
      response.end("data: [DONE]\n\n");
    },
  };
}

async function complete(request, response) {
  const asked = await body(request);
  const { prompt, tokensMax } = read(asked);
  if (model.isFull) throw new Refusal(503, "the model is busy", { "Retry-After": RETRY_AFTER_S });
  const { messages, max_tokens = null } = asked;
  const entry = { model: asked.model, messages, max_tokens, prompt_tokens: prompt.length, completion_tokens: 0, text: "", end: null };
  account.push(entry);
  const out = stream(response, asked.model, `chatcmpl-${account.length}`);
  out.begin();
  const reason = await model.answer(prompt, tokensMax, asked.model === ENDLESS, (text, count) => {
    if (response.destroyed) return false;
    entry.completion_tokens = count;
    entry.text += text;
    if (text !== "") out.say(text);
    return true;
  });
  if (reason !== "closed") {
    const { prompt_tokens, completion_tokens } = entry;
    const usage = { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
    out.end(reason, asked.stream_options?.include_usage ? usage : null);
  }
  entry.end = reason;
}

function tell(response, status, value, headers) {
  response.writeHead(status, { "Content-Type": "application/json", ...headers });
  response.end(JSON.stringify(value));
}

async function answer(request, response) {
  try {
    if (request.method === "POST" && request.url === "/v1/chat/completions") await complete(request, response);
    else if (request.method === "GET" && request.url === "/account") tell(response, 200, { running: model.running, requests: account });
    else throw new Refusal(404, `there is no ${request.url}`);
  } catch (error) {
    process.stderr.write(`${request.method} ${request.url}: ${error.stack}\n`);
    if (response.headersSent) response.destroy();
    else tell(response, error.status ?? 500, { error: { message: error.message } }, error.headers);
  }
}

const server = http.createServer(answer);
server.listen(0, "127.0.0.1", () => process.stdout.write(`${JSON.stringify({ port: server.address().port })}\n`));
process.stdin.resume().on("end", () => process.exit(0));
