//! The `nex.yaml` that is written when there is none: every key with its meaning, few of them active.
//! A prose comment is `# ` and words; a key with its default or an example is `#` right before the key.

/// A friendly, fully commented configuration file that loads without warnings.
pub const DEFAULT_YAML: &str = r##"# The configuration of Nexus.
#
# A key behind a `#` shows its default, or an example where there is none; remove the `#` to set it.
# After a change: `nexus config check`, then `nexus daemon reload`.
# What commands such as `nexus adapter enable` change is kept in state/overlay.yaml and wins over this
# file; `nexus config show` shows the values in force and where each came from.

# Where the daemon listens and what it logs.
daemon:
  # IP address of the HTTP listener (health, metrics, event stream), or localhost.
  #host: "127.0.0.1"
  # Its port; 0 takes any free port. Host and port need a restart.
  #port: 7400
  # debug, info, warn or error.
  #log_level: info
  # A host that other machines can reach needs both of these: the permission, and a file with the
  # bearer token that clients must send.
  #allow_external: false
  #token_file: state/http-token

# How requests run.
pipeline:
  # Active time that one request may take, in milliseconds; waiting is not counted.
  #timeout_ms: 300000
  # Requests that may be worked on at one time, before their agents run.
  #max_concurrent: 64
  # A run that a crash interrupted: auto (rerun it if nothing of it can have been seen), rerun, fail.
  #on_interrupted: auto

# Where records are kept.
ledgers:
  # Directory of the databases, relative to this file. Needs a restart.
  #directory: ./data
  # Days for which full request snapshots, traces, and access decisions are kept. Events are kept for ever.
  #retention:
    #snapshots_days: 7
    #traces_days: 30
    #audit_days: 365
  # Free disk space, in MiB, below which nothing new is accepted.
  #min_free_mb: 256

# Programs that connect channels: chat, mail, webhooks. See `nexus adapter --help`.
adapters:
  # A name of your choice.
  #gog:
    # The program and its arguments, never run by a shell. `builtin:webhook` is part of Nexus.
    #command: gog
    # The channel it serves; left out, the program tells.
    #channel: gmail
    # Environment variables to set, and names of the daemon's own to pass on. Credentials do not belong
    # here: see `nexus credential --help`.
    #env:
      #GOG_REGION: eu
    #pass_env: [HTTPS_PROXY]
    # Working directory, relative to this file.
    #cwd: .
    # Restarts: how many in a row before it is `errored`; the delay and its growth; how long it must run
    # to begin anew; how often an `errored` one is tried again (0: never).
    #restart:
      #max_restarts: 5
      #backoff_base_ms: 1000
      #backoff_multiplier: 2
      #backoff_max_ms: 300000
      #reset_after_ms: 600000
      #errored_retry_ms: 300000
    # Longest line it may write, in bytes, and waiting requests of one account at which reading stops.
    #max_line_bytes: 1048576
    #max_pending: 100000
    # Sending: time for one send; retries; a send that may have arrived (hold it for you, or retry);
    # age at which an unsent message expires; answers that are still being made (auto: live if the
    # program supports `stream`, else as a whole; blocks; whole).
    #send:
      #timeout_ms: 30000
      #retries: 3
      #on_uncertain: hold
      #ttl_ms: 3600000
      #stream: auto
    # After a time without reading: how far to look back before the last event; from which age an event
    # counts as late; what happens to a late one (run it, or only file it).
    #catch_up:
      #overlap_ms: 600000
      #max_age_ms: 3600000
      #late: run
    # Its accounts by id: read for ever; fetch the history once; the credential (service/account,
    # env:NAME or command:...); use it at all; anything else the program wants to know.
    #accounts:
      #me@example.org:
        #monitor: true
        #backfill: false
        #credential_ref: google/me
        #enabled: true
        #config: {}

# Who may use this. Unknown senders are denied.
access:
  # You, as channel:identifier; the identifier may be *.
  owner: ["cli:*"]
  # What happens to requests that no policy matches: deny or allow.
  #default: deny
  # Whether your messages /stop, /new and /status are commands, which no agent gets.
  #owner_words: true
  # Rules; of those that match, the highest priority decides.
  #policies:
    # A unique name, and what it is for.
    #- name: family-evenings
      #description: The family may ask in the evening.
      # Who: type is owner, known, unknown, system, webhook or agent. Where and when: one must fit.
      #match:
        #principal:
          #type: known
          #relationship: family
          #tags: [trusted]
          #entity: ent_1
          #name: Ada
        #conditions:
          # Hours may pass midnight. peer_kind is dm, group or channel; days are mon to sun. A reaction or system/...
          # event goes to an agent only where its content type is named.
          #- channel: imessage
            #account: me
            #peer_kind: dm
            #content_type: [text, reaction, "system/*"]
            #time: "18:00-22:00"
            #days: [sat, sun]
      # allow or deny.
      #effect: allow
      # Tools (a denied one is denied even if allowed), credentials (information only), and what the agent is told
      # of what was said before: none, minimal (what this sender said), contextual (the session) or full.
      #permissions:
        #tools:
          #allow: [calendar]
          #deny: [shell]
        #credentials: [google/me]
        #data_access: contextual
      # Where it goes, instead of the default agent and session.
      #session:
        #agent: echo
        #key: family
      # A message whose session is busy: followup (each is answered, in order), collect (what waits becomes
      # one turn), interrupt or steer. So many may wait; drop the old or the new one then.
      #queue_mode: followup
      #queue:
        #cap: 20
        #drop: old
      # How often one sender may ask on one channel.
      #rate:
        #per_minute: 30
      #priority: 10

# Who answers.
agents:
  # The agent that answers when no policy names another. `echo` exists always.
  default: echo
  # A program: one JSON on stdin, its answer on stdout.
  #helper:
    #runner: command
    #command: my-agent --stdio
    #env:
      #LANG: C.UTF-8
    #pass_env: [HTTPS_PROXY]
    #cwd: .
    #timeout_ms: 120000
    #max_concurrent: 16
    # It takes messages while it runs, where a policy has `queue_mode: steer`: its stdin stays open.
    #steering: false
    # Earlier texts that match a message and are given along with it, of any runner but echo: how many, and
    # how many bytes together. It sees only what `data_access` of its request allows.
    #memory:
      #matches: 0
      #max_bytes: 4096
  # A model behind an HTTP interface: openai (any compatible one), openai_resp, anthropic, gemini, groq,
  # deepseek, xai or ollama. Its key comes from a file (key_file: path) or from an environment variable
  # (key_env), not both.
  #model:
    #runner: llm
    #provider: openai
    #url: https://api.example.org/v1
    #model: small-1
    #key_env: MODEL_API_KEY
    #system_prompt_file: prompts/system.md
    # Who answers while the interface is busy or can't be reached.
    #fallback: [local]
    # Longest answer, and longest prompt with its history, in tokens.
    #max_tokens: 4096
    #context_tokens: 32000
    # Rounds of tool calls in one turn.
    #tool_rounds_max: 8
    # What it may use; nothing is limited by itself. Dollars need prices.
    #budget:
      #tokens_per_session: 200000
      #tokens_per_day: 1000000
      #usd_per_session: 1
      #usd_per_day: 5
      #usd_per_million_input: 0.5
      #usd_per_million_output: 2
    # Programs whose tools it may call, as far as the policy allows them: files__read, files__*.
    #mcp:
      #files:
        #command: my-mcp-server --directory notes
        #env:
          #LANG: C.UTF-8
        #pass_env: [HTTPS_PROXY]
        #tools: ["*"]
  # Any OpenAI-compatible server on this machine.
  #local:
    #runner: llm
    #url: http://127.0.0.1:8080/v1
    #model: local
  # A program that stays and speaks the Agent Client Protocol. What it wants permission for is decided by
  # access control; what that leaves open, the owner is asked (owner, always, never), and has so long.
  #coder:
    #runner: acp
    #command: my-acp-agent
    #permissions:
      #ask: owner
      #timeout_ms: 120000

# Which plugins run.
plugins:
  # Their directory, relative to this file. Needs a restart.
  #directory: ./plugins
  # logging: a line per request, and per stage with log_level: debug. analytics: counters and latency. Any other
  # name is NAME.ts, NAME.js or a directory NAME with a plugin.yaml in the directory of plugins.
  enabled: [logging, analytics]
  # What each may call, as in: { greeter: [ledger.query, llm, search, send, "fetch:api.example.org"] }
  #grants: {}
  # What each may use of models in a day (left out: no limit), as in: { greeter: { tokens_per_day: 50000, usd_per_day: 1 } }
  #budgets: {}
  # Errors in a row after which a plugin is not asked any more, and the time until one call tries again.
  #circuit:
    #errors: 5
    #half_open_ms: 300000

# Automations are the files in state/automations; all of them run but these.
automations:
  # Names of those that don't run; `nexus automation disable` adds to them.
  #disabled: []
  # What each may call, as in: { digest: [send, llm] }
  #grants: {}
  # What each may use of models in a day, as plugins.budgets.
  #budgets: {}

# Events that the daemon makes itself.
timer:
  # Milliseconds between heartbeats, at least 1000; 0 for none.
  heartbeat_interval_ms: 60000
  # Time zone of the expressions below: local, or a name such as Europe/Berlin.
  #timezone: local
  # Scheduled events: minute hour day month weekday.
  #cron:
    #- expr: "0 8 * * *"
      # A unique name, which the events carry.
      #label: morning-summary
      # Slots that passed while nothing ran: skip them, fire the newest once, or fire all.
      #missed: once
      # Lateness, in milliseconds, beyond which a missed slot is dropped in any case.
      #max_lateness_ms: 86400000
      # Where an agent's answer is sent, as in: { adapter: gog, account: me@example.org, to: me@example.org }
      #deliver:

# What is held for those who follow what happens.
bus:
  # memory, or write-through to keep it across restarts.
  #mode: memory
  # Notices that a slow or returning client can still get.
  #ring: 10000
  # Days for which written-through notices are kept.
  #retention_days: 7

# Nostr: relays that events come from and go to. See `nexus nostr --help`.
nostr:
  # Addresses; without any nothing of Nostr runs. `nexus nostr relay` runs one on this machine.
  #relays: ["wss://relay.example.org"]
  # Whose events are heeded, as npub1... or 64 hexadecimal digits. Those of others are dropped unread.
  #whitelist: [npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg]
  # A credential with the daemon's own secret key; left out, one is made on first use.
  #secret_key: nostr/me
  # Relays that may learn by which key the daemon speaks, if they ask who it is.
  #auth: ["wss://relay.example.org"]
  # Longest message of a relay that is looked at, in bytes, and events of one kind published in a minute.
  #max_frame_bytes: 65536
  #publish_per_minute: 120
  # Accepted events without an end from which on nothing more is taken in; half of that is shared out by author.
  #max_pending: 100000
  # Kinds of event that define a project.
  #project_kinds: [31933]

# Directories in which agents work, activated by events of Nostr. See `nexus project --help`.
projects:
  # Where they lie; ~ is the home directory.
  #path: ~/projects
  # What runs one, instead of this binary's own `project run`, and what it speaks: jsonl, or none for a
  # program that finds its events itself.
  #command: my-project-runner
  #protocol: jsonl
  # How many run at one time (left out: one for each 512 MiB of memory, at most 64), how many of those
  # used last are kept running, and how many are prepared at one time.
  #max_running: 16
  #warm: 0
  #prepare_concurrent: 2
  # Milliseconds without work until one is stopped (0: never), until its process must be ready, and
  # between two questions whether it is alive.
  #idle_stop_ms: 1800000
  #ready_timeout_ms: 30000
  #ping_ms: 30000
  # Restarts: the first delay, which doubles, and the longest; how long it must run to begin anew; how many
  # crashes within which time quarantine it.
  #restart:
    #backoff_base_ms: 1000
    #backoff_max_ms: 60000
    #reset_after_ms: 60000
    #max_crashes: 5
    #window_ms: 600000
  # Cloning: the program; transports (https, ssh, http); hosts (host, host:port, *.domain, *), of which one
  # that is named needs no approval; addresses of this machine and private networks; commits (left out:
  # all); size in MiB; time for one command; certificates to trust instead of the system's.
  #git:
    #program: git
    #allow_schemes: [https, ssh]
    #allow_hosts: ["*"]
    #allow_private: false
    #depth: 1
    #max_mb: 1024
    #timeout_ms: 600000
    #ca_file: git-ca.pem
  # Whether what whitelisted authors' definitions install needs no approval of yours.
  #auto_approve_authors: false
  # What differs for single projects, by kind:pubkey:identifier.
  #overrides:
    #"31933:0000000000000000000000000000000000000000000000000000000000000001:demo":
      #command: my-project-runner --demo
      #protocol: jsonl
      #env:
        #LANG: C.UTF-8
      #pass_env: [HTTPS_PROXY]
      #restart:
        #max_crashes: 3
      #agent: echo
      #idle_stop_ms: 0
"##;
