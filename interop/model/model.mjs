// A small language model on the CPU, for a few answers at a time: all that are under way share each step.
// Owns the model's memory, which answer has which place in it, and the bounds of both. Knows nothing of HTTP.
// The native module is node-llama-cpp's; its types are `bindings/AddonTypes.d.ts` there.

import { createRequire } from "node:module";
import path from "node:path";

// Of prompt and answer together.
export const CONTEXT_TOKENS = 1024;
export const ANSWERS_MAX = 2;
// What a step takes of one prompt: another answer goes on in between.
const STEP_TOKENS_MAX = 256;
// A character has at most four bytes, so at most that many tokens.
const TOKENS_PER_CHAR_MAX = 4;
const INCOMPLETE = "\uFFFD";

export class Model {
  #native;
  #model;
  #context;
  #places = Array.from({ length: ANSWERS_MAX }, (_, place) => place);
  #answers = new Set();
  #isStepping = false;

  static async load(directory, file) {
    const made = new Model();
    const native = createRequire(import.meta.url)(path.join(directory, "llama-addon.node"));
    native.markLoaded();
    // Warnings and worse go to stderr; the levels are 1 for fatal to 6 for debug.
    native.setLogger((_level, message) => process.stderr.write(message));
    native.setLoggerLogLevel(3);
    native.loadBackends(directory);
    await native.init();
    made.#native = native;
    made.#model = new native.AddonModel(file, { addonExports: native, gpuLayers: 0, useMmap: true });
    if (!(await made.#model.init())) throw new Error(`failed to load \`${file}\``);
    const sizes = { contextSize: CONTEXT_TOKENS * ANSWERS_MAX, batchSize: STEP_TOKENS_MAX * ANSWERS_MAX, sequences: ANSWERS_MAX };
    // Threads wait for each other by spinning: on a busy machine two are ten times slower than one.
    made.#context = new native.AddonContext(made.#model, { ...sizes, threads: 1 });
    if (!(await made.#context.init())) throw new Error("failed to make a context");
    return made;
  }

  // ChatML, as this model was trained with. What others wrote makes no mark of it.
  prompt(messages) {
    const tokens = [];
    const add = (text, areMarks) => tokens.push(...this.#model.tokenize(text, areMarks));
    for (const { role, content } of messages) {
      add(`<|im_start|>${role}\n`, true);
      add(content, false);
      add("<|im_end|>\n", true);
    }
    add("<|im_start|>assistant\n", true);
    return tokens;
  }

  get running() {
    return this.#answers.size;
  }

  get isFull() {
    return this.#places.length === 0;
  }

  // Answers a prompt, the likeliest token each time. `say` is told each new piece of text and how many tokens there are,
  // and returns whether to go on. `isEndless`: when the model is done, it has to begin another line.
  // Resolves to why it ended: `stop`, `length`, or `closed`, which `say` decided.
  answer(prompt, tokensMax, isEndless, say) {
    if (this.#places.length === 0) throw new Error("no place is free");
    if (prompt.length >= CONTEXT_TOKENS) throw new Error("the prompt is too long");
    const place = this.#places.pop();
    const sampler = new this.#native.AddonSampler(this.#model);
    sampler.applyConfig({ temperature: 0 });
    const limit = Math.min(tokensMax, CONTEXT_TOKENS - prompt.length);
    return new Promise((resolve, reject) => {
      this.#answers.add({ place, sampler, next: prompt, seen: 0, count: 0, pending: [], limit, isEndless, say, resolve, reject });
      if (!this.#isStepping) this.#steps();
    });
  }

  async #steps() {
    this.#isStepping = true;
    try {
      while (this.#answers.size > 0) await this.#step([...this.#answers]);
    } catch (error) {
      for (const answer of this.#answers) this.#leave(answer).reject(error);
    }
    this.#isStepping = false;
  }

  // Reads the next tokens of all answers at once, and takes one new token for each that has read its prompt.
  async #step(answers) {
    const parts = answers.map((answer) => answer.next.slice(0, STEP_TOKENS_MAX));
    this.#context.initBatch(parts.reduce((sum, part) => sum + part.length, 0));
    const logits = answers.map((answer, n) => {
      const isLast = parts[n].length === answer.next.length;
      const wanted = isLast ? [parts[n].length - 1] : [];
      return this.#context.addToBatch(answer.place, answer.seen, Uint32Array.from(parts[n]), Uint32Array.from(wanted))[0];
    });
    await this.#context.decodeBatch();
    for (const [n, answer] of answers.entries()) {
      answer.seen += parts[n].length;
      answer.next = answer.next.slice(parts[n].length);
      if (answer.next.length > 0) continue;
      this.#take(answer, await this.#context.sampleToken(logits[n], answer.sampler));
    }
  }

  #take(answer, sampled) {
    const isOver = this.#model.isEogToken(sampled);
    if (isOver && !answer.isEndless) {
      const goesOn = answer.say(this.#text(answer, true), answer.count);
      this.#leave(answer).resolve(goesOn ? "stop" : "closed");
      return;
    }
    const token = isOver ? this.#model.tokenNl() : sampled;
    answer.next = [token];
    answer.pending.push(token);
    answer.count += 1;
    const isFull = answer.count >= answer.limit;
    const goesOn = answer.say(this.#text(answer, isFull), answer.count);
    if (!goesOn || isFull) this.#leave(answer).resolve(goesOn ? "length" : "closed");
  }

  // The text of what was taken and not yet said, once it ends with a whole character.
  #text(answer, isLast) {
    const text = this.#model.detokenize(Uint32Array.from(answer.pending), false);
    if (text.endsWith(INCOMPLETE) && !isLast && answer.pending.length < TOKENS_PER_CHAR_MAX) return "";
    answer.pending = [];
    return text;
  }

  #leave(answer) {
    this.#answers.delete(answer);
    this.#context.disposeSequence(answer.place);
    answer.sampler.dispose();
    this.#places.push(answer.place);
    return answer;
  }
}
