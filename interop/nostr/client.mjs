// A user's client, made of nostr-tools: defines a project with an agent, says something to it, and verifies the
// answer. Knows nothing of nexus but the kinds of event.
//
//   client.mjs define URL SECRET NAME                 publishes the definitions, prints the project's coordinate
//   client.mjs ask URL SECRET COORDINATE TEXT         prints the verified answer
import { finalizeEvent, getPublicKey, verifyEvent } from 'nostr-tools/pure'
import { Relay, useWebSocketImplementation } from 'nostr-tools/relay'
import WebSocket from 'ws'

const PROJECT = 31933
const AGENT = 4199
const ANSWERS = [1, 1111]
const ANSWER_LIMIT_MS = 90_000
// A relay asks who we are right after the connection, or with its first refusal.
const CHALLENGE_WAIT_MS = 500
const TRIES = 5

useWebSocketImplementation(WebSocket)

// A relay need not answer a proof (NIP-42 says that it does; one of ours doesn't): that alone fails nothing.
process.on('unhandledRejection', (reason) => {
  if (/auth timed out|relay connection closed/.test(String(reason))) return
  fail(reason)
})

function fail(reason) {
  console.error(reason instanceof Error ? reason.stack : String(reason))
  process.exit(1)
}

const pause = () => new Promise((resolve) => setTimeout(resolve, CHALLENGE_WAIT_MS))

async function connected(url, secret) {
  const relay = new Relay(url)
  relay.onauth = async (template) => finalizeEvent(template, secret)
  await relay.connect()
  await pause()
  return relay
}

// Again after a refusal that asks who we are, which is answered meanwhile.
async function known(action) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await action()
    } catch (error) {
      if (tries === TRIES || !/auth-required/.test(String(error))) throw error
      await pause()
    }
  }
}

function signed(secret, kind, tags, content) {
  return finalizeEvent({ kind, tags, content, created_at: Math.floor(Date.now() / 1000) }, secret)
}

async function define(relay, secret, name) {
  const agent = signed(secret, AGENT, [['d', 'helper'], ['title', 'Helper'], ['role', 'helper'], ['ver', '1']], 'You help.')
  await known(() => relay.publish(agent))
  const project = signed(secret, PROJECT, [['d', name], ['title', name], ['agent', agent.id]], 'For a test.')
  await known(() => relay.publish(project))
  return { coordinate: `${PROJECT}:${getPublicKey(secret)}:${name}` }
}

// The first event that the filter finds by somebody else; `listening` is called once the relay listens for it.
function heard(relay, filter, author, listening) {
  return new Promise((resolve, reject) => {
    relay.subscribe([filter], {
      onevent: (event) => event.pubkey !== author && resolve(event),
      oneose: () => listening().catch(reject),
      onclose: (reason) => reject(new Error(`the subscription was closed: ${reason}`)),
    })
  })
}

async function ask(relay, secret, coordinate, text) {
  const question = signed(secret, 1, [['a', coordinate]], text)
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error(`no answer to ${question.id}`)), ANSWER_LIMIT_MS))
  const filter = { kinds: ANSWERS, '#e': [question.id] }
  const publish = () => known(() => relay.publish(question))
  const answer = await Promise.race([late, known(() => heard(relay, filter, question.pubkey, publish))])
  // Anew, from its JSON: the library remembers what it verified.
  if (!verifyEvent(JSON.parse(JSON.stringify(answer)))) throw new Error(`the answer's signature is wrong: ${JSON.stringify(answer)}`)
  return { question, answer }
}

const [verb, url, secretHex, ...rest] = process.argv.slice(2)
try {
  const secret = Uint8Array.from(Buffer.from(secretHex, 'hex'))
  const relay = await connected(url, secret)
  const verbs = { define, ask }
  console.log(JSON.stringify(await verbs[verb](relay, secret, ...rest)))
  process.exit(0)
} catch (error) {
  fail(error)
}
