# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_nexus_global_optspecs
    string join \n json c/config= h/help V/version
end

function __fish_nexus_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_nexus_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_nexus_using_subcommand
    set -l cmd (__fish_nexus_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c nexus -n "__fish_nexus_needs_command" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_needs_command" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_needs_command" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_needs_command" -s V -l version -d 'Print version'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "daemon" -d 'Start, stop and watch the daemon'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "adapter" -d 'Connect channels: the programs that read and write them, and their accounts'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "plugin" -d 'Use plugins: programs and scripts that see requests on their way, and may change them'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "automation" -d 'Use automations: scripts that are asked about events, and answer them, add to them or call an agent'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "send" -d 'Send one message and print the answer'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "chat" -d 'Talk to an agent, line by line'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "events" -d 'Show what came in and went out'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "trace" -d 'Show what became of an event: stages, decisions, deliveries'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "search" -d 'Find what agents were asked and what they answered'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "access" -d 'Say who is who, and see what they may and why'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "deliveries" -d 'Show and decide about messages on their way out'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "sessions" -d 'Show what was said in each session; fork, archive and stop sessions'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "doctor" -d 'Look at everything that the daemon needs and keeps, and say what to do about what is wrong'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "backup" -d 'Copy the ledgers and the configuration, of a running daemon too'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "restore" -d 'Put a backup in the place of the ledgers'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "nostr" -d 'Use Nostr: relays that events come from and go to'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "project" -d 'Use projects: directories in which agents work, activated by events of Nostr'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "credential" -d 'Store credentials for adapters'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "config" -d 'Check and show the configuration'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "completions" -d 'Print a completion script for a shell'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "version" -d 'Print the version'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "__generate" -d 'Write the generated documentation into a directory'
complete -c nexus -n "__fish_nexus_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and not __fish_seen_subcommand_from start stop restart status reload logs help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and not __fish_seen_subcommand_from start stop restart status reload logs help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and not __fish_seen_subcommand_from start stop restart status reload logs help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and not __fish_seen_subcommand_from start stop restart status reload logs help" -f -a "start" -d 'Start the daemon, in the foreground unless --detach is given'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and not __fish_seen_subcommand_from start stop restart status reload logs help" -f -a "stop" -d 'Stop the daemon: what runs is finished and recorded first, for at most 45 s'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and not __fish_seen_subcommand_from start stop restart status reload logs help" -f -a "restart" -d 'Stop and start, with the flags it was started with'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and not __fish_seen_subcommand_from start stop restart status reload logs help" -f -a "status" -d 'Show what runs, and how it is'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and not __fish_seen_subcommand_from start stop restart status reload logs help" -f -a "reload" -d 'Apply a changed configuration to the running daemon'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and not __fish_seen_subcommand_from start stop restart status reload logs help" -f -a "logs" -d 'Show the log of a detached daemon'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and not __fish_seen_subcommand_from start stop restart status reload logs help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from start" -l log-level -d 'Log from this level on, whatever the configuration says' -r -f -a "debug\t''
info\t''
warn\t''
error\t''"
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from start" -l port -d 'Listen on this TCP port, whatever the configuration says' -r
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from start" -s w -l whitelist -d 'Heed the events of these public keys too (npub1... or hexadecimal), separated by commas' -r
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from start" -s p -l projects-path -d 'Where projects lie, whatever the configuration says' -r
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from start" -l until-parent-ends -d 'Stop when this process, which started it, is gone' -r
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from start" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from start" -s d -l detach -d 'Run in the background, with the log in ~/.nexus/logs/nex.log'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from start" -l detached-child -d 'How --detach starts itself: stdin is the pipe on which it says that it is ready'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from start" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from start" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from stop" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from stop" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from stop" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from restart" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from restart" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from restart" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from status" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from status" -l verbose -d 'Also how surely no child outlives the daemon, how plugins and automations are, and what is used of budgets'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from status" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from status" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from reload" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from reload" -l dry-run -d 'Only say what would change'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from reload" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from reload" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from logs" -s n -l lines -d 'How many lines to begin with' -r
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from logs" -l level -d 'Only lines of this level or a more severe one' -r -f -a "debug\t''
info\t''
warn\t''
error\t''"
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from logs" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from logs" -s f -l follow -d 'Go on with what comes'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from logs" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from logs" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from help" -f -a "start" -d 'Start the daemon, in the foreground unless --detach is given'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from help" -f -a "stop" -d 'Stop the daemon: what runs is finished and recorded first, for at most 45 s'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from help" -f -a "restart" -d 'Stop and start, with the flags it was started with'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from help" -f -a "status" -d 'Show what runs, and how it is'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from help" -f -a "reload" -d 'Apply a changed configuration to the running daemon'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from help" -f -a "logs" -d 'Show the log of a detached daemon'
complete -c nexus -n "__fish_nexus_using_subcommand daemon; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "register" -d 'Add an adapter: a program that speaks the adapter protocol'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "unregister" -d 'Remove an adapter that `register` added'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "list" -d 'List the adapters'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "info" -d 'Show what an adapter says about itself'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "accounts" -d 'List an adapter\'s accounts, those configured and those it reports'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "account" -d 'Add and remove accounts'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "enable" -d 'Use an adapter, or one of its accounts, again'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "disable" -d 'Stop using an adapter, or one of its accounts, until it is enabled'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "start" -d 'Start an account\'s process'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "stop" -d 'Stop an account\'s process, until it or the daemon is started'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "restart" -d 'Restart an account\'s process, also an errored one'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "backfill" -d 'Fetch an account\'s history'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "status" -d 'Show how accounts are'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "health" -d 'Probe an account\'s health now'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and not __fish_seen_subcommand_from register unregister list info accounts account enable disable start stop restart backfill status health help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from register" -l command -d 'The program and its arguments, split as a shell would and never run by one' -r
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from register" -l channel -d 'The channel it serves [default: what it says itself]' -r
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from register" -l account -d 'An account of it; can be given several times' -r
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from register" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from register" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from register" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from unregister" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from unregister" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from unregister" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from list" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from list" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from info" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from info" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from info" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from accounts" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from accounts" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from accounts" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from account" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from account" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from account" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from account" -f -a "add" -d 'Add an account to an adapter'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from account" -f -a "remove" -d 'Remove an account that `account add` or `register` added'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from account" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from enable" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from enable" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from enable" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from disable" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from disable" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from disable" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from start" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from start" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from start" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from stop" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from stop" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from stop" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from restart" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from restart" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from restart" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from backfill" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from backfill" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from backfill" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from status" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from status" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from status" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from health" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from health" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from health" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "register" -d 'Add an adapter: a program that speaks the adapter protocol'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "unregister" -d 'Remove an adapter that `register` added'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the adapters'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "info" -d 'Show what an adapter says about itself'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "accounts" -d 'List an adapter\'s accounts, those configured and those it reports'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "account" -d 'Add and remove accounts'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "enable" -d 'Use an adapter, or one of its accounts, again'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "disable" -d 'Stop using an adapter, or one of its accounts, until it is enabled'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "start" -d 'Start an account\'s process'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "stop" -d 'Stop an account\'s process, until it or the daemon is started'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "restart" -d 'Restart an account\'s process, also an errored one'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "backfill" -d 'Fetch an account\'s history'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "status" -d 'Show how accounts are'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "health" -d 'Probe an account\'s health now'
complete -c nexus -n "__fish_nexus_using_subcommand adapter; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and not __fish_seen_subcommand_from list info enable disable test types help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and not __fish_seen_subcommand_from list info enable disable test types help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and not __fish_seen_subcommand_from list info enable disable test types help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and not __fish_seen_subcommand_from list info enable disable test types help" -f -a "list" -d 'List the plugins, those that run and those that could'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and not __fish_seen_subcommand_from list info enable disable test types help" -f -a "info" -d 'Show what a plugin is, and how it does'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and not __fish_seen_subcommand_from list info enable disable test types help" -f -a "enable" -d 'Have a plugin run'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and not __fish_seen_subcommand_from list info enable disable test types help" -f -a "disable" -d 'Have a plugin run no more'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and not __fish_seen_subcommand_from list info enable disable test types help" -f -a "test" -d 'Start a plugin on its own, call it with an event, and show what it answers'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and not __fish_seen_subcommand_from list info enable disable test types help" -f -a "types" -d 'Print the types that plugins and automations in TypeScript are written against'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and not __fish_seen_subcommand_from list info enable disable test types help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from list" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from list" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from info" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from info" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from info" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from enable" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from enable" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from enable" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from disable" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from disable" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from disable" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from test" -l event -d 'A file with one event, as an adapter writes it' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from test" -l hook -d 'Only this hook [default: all that it has]' -r -f -a "afterReceiveEvent\t''
afterResolveIdentity\t''
afterResolveAccess\t''
afterRunAutomations\t''
afterAssembleContext\t''
afterRunAgent\t''
afterDeliverResponse\t''
onFinalize\t''
onError\t''"
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from test" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from test" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from test" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from types" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from types" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from types" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the plugins, those that run and those that could'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from help" -f -a "info" -d 'Show what a plugin is, and how it does'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from help" -f -a "enable" -d 'Have a plugin run'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from help" -f -a "disable" -d 'Have a plugin run no more'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from help" -f -a "test" -d 'Start a plugin on its own, call it with an event, and show what it answers'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from help" -f -a "types" -d 'Print the types that plugins and automations in TypeScript are written against'
complete -c nexus -n "__fish_nexus_using_subcommand plugin; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -f -a "register" -d 'Put a file among the automations, from where it runs'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -f -a "list" -d 'List the automations, those that run and those that don\'t'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -f -a "info" -d 'Show what an automation is, what it knows, and how it does'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -f -a "enable" -d 'Have an automation asked, also one that disabled itself'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -f -a "disable" -d 'Have an automation asked no more'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -f -a "delete" -d 'Remove an automation\'s file, and what it knows'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -f -a "test" -d 'Ask an automation about an event in a process of its own, and show what it says'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and not __fish_seen_subcommand_from register list info enable disable delete test help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from register" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from register" -l replace -d 'Put it in the place of the automation of that name; what that knows stays'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from register" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from register" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from list" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from list" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from info" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from info" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from info" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from enable" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from enable" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from enable" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from disable" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from disable" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from disable" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from delete" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from delete" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from test" -l event -d 'A file with one event, as an adapter writes it' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from test" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from test" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from test" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from help" -f -a "register" -d 'Put a file among the automations, from where it runs'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the automations, those that run and those that don\'t'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from help" -f -a "info" -d 'Show what an automation is, what it knows, and how it does'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from help" -f -a "enable" -d 'Have an automation asked, also one that disabled itself'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from help" -f -a "disable" -d 'Have an automation asked no more'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from help" -f -a "delete" -d 'Remove an automation\'s file, and what it knows'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from help" -f -a "test" -d 'Ask an automation about an event in a process of its own, and show what it says'
complete -c nexus -n "__fish_nexus_using_subcommand automation; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand send" -l conversation -d 'The conversation that it belongs to [default: default]' -r
complete -c nexus -n "__fish_nexus_using_subcommand send" -l session-sender -d 'Who sends it, as the record shows it; for access it is the owner [default: local]' -r
complete -c nexus -n "__fish_nexus_using_subcommand send" -l event-id -d 'An id of your own: the same id is answered, but never processed twice' -r
complete -c nexus -n "__fish_nexus_using_subcommand send" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand send" -l no-stream -d 'Print the answer only when it is complete'
complete -c nexus -n "__fish_nexus_using_subcommand send" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand send" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand chat" -l conversation -d 'The conversation to go on with [default: default]' -r
complete -c nexus -n "__fish_nexus_using_subcommand chat" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand chat" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand chat" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand events; and not __fish_seen_subcommand_from tail show replay search help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand events; and not __fish_seen_subcommand_from tail show replay search help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand events; and not __fish_seen_subcommand_from tail show replay search help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand events; and not __fish_seen_subcommand_from tail show replay search help" -f -a "tail" -d 'Show the newest events'
complete -c nexus -n "__fish_nexus_using_subcommand events; and not __fish_seen_subcommand_from tail show replay search help" -f -a "show" -d 'Show one event with all its fields'
complete -c nexus -n "__fish_nexus_using_subcommand events; and not __fish_seen_subcommand_from tail show replay search help" -f -a "replay" -d 'Run a received event again: a new request, linked to the first'
complete -c nexus -n "__fish_nexus_using_subcommand events; and not __fish_seen_subcommand_from tail show replay search help" -f -a "search" -d 'Find events by their text'
complete -c nexus -n "__fish_nexus_using_subcommand events; and not __fish_seen_subcommand_from tail show replay search help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from tail" -s n -l limit -d 'How many to begin with' -r
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from tail" -l channel -d 'Only this channel' -r
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from tail" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from tail" -s f -l follow -d 'Go on with what comes'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from tail" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from tail" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from show" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from show" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from replay" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from replay" -l wait -d 'Wait for the new request\'s end; what `nexus send` said is always waited for'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from replay" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from replay" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from search" -s n -l limit -d 'How many at most' -r
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from search" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from search" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from search" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from help" -f -a "tail" -d 'Show the newest events'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show one event with all its fields'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from help" -f -a "replay" -d 'Run a received event again: a new request, linked to the first'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from help" -f -a "search" -d 'Find events by their text'
complete -c nexus -n "__fish_nexus_using_subcommand events; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and not __fish_seen_subcommand_from show retry list help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand trace; and not __fish_seen_subcommand_from show retry list help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and not __fish_seen_subcommand_from show retry list help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and not __fish_seen_subcommand_from show retry list help" -a "show" -d 'Show one request: its stages, decisions and deliveries'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and not __fish_seen_subcommand_from show retry list help" -a "retry" -d 'Run a request again that failed or expired: a new one, linked to it'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and not __fish_seen_subcommand_from show retry list help" -a "list" -d 'List the newest requests'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and not __fish_seen_subcommand_from show retry list help" -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from show" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from show" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from retry" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from retry" -l wait -d 'Wait for the new request\'s end; what `nexus send` said is always waited for'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from retry" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from retry" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from list" -l status -d 'Only requests of this status' -r -f -a "waiting\t''
processing\t''
interrupted\t''
completed\t''
denied\t''
handled_by_automation\t''
failed\t''
expired\t''"
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from list" -s n -l limit -d 'How many at most' -r
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from list" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from list" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show one request: its stages, decisions and deliveries'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from help" -f -a "retry" -d 'Run a request again that failed or expired: a new one, linked to it'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the newest requests'
complete -c nexus -n "__fish_nexus_using_subcommand trace; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand search" -l agent -d 'Only what this agent was asked and answered' -r
complete -c nexus -n "__fish_nexus_using_subcommand search" -l session -d 'Only of this session' -r
complete -c nexus -n "__fish_nexus_using_subcommand search" -l kind -d 'Only what came in (event), or what the agent said (turn)' -r -f -a "event\t''
turn\t''"
complete -c nexus -n "__fish_nexus_using_subcommand search" -l since -d 'Nothing older: 90s, 30m, 12h, 7d or 2w' -r
complete -c nexus -n "__fish_nexus_using_subcommand search" -s n -l limit -d 'How many at most [default: 10]' -r
complete -c nexus -n "__fish_nexus_using_subcommand search" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand search" -l rebuild -d 'Make the index anew out of the ledgers, that of one agent or of all'
complete -c nexus -n "__fish_nexus_using_subcommand search" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand search" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "who" -d 'Show who wrote, newest first, or all that is known of a sender or an entity'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "link" -d 'Say that a sender belongs to an entity, which is made if there is none'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "unlink" -d 'Take a sender from its entity'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "set" -d 'Change what an entity is called, and what it is to you'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "tag" -d 'Put tags on an entity, for policies'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "untag" -d 'Take tags off an entity'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "merge" -d 'Have an entity count as another, with its senders and tags'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "unmerge" -d 'Have a merged entity count for itself again'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "policies" -d 'Show the policies in force, in their order'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "check" -d 'Show what would be decided about a sender, and why'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "audit" -d 'Show who was let in or denied, and why, newest first'
complete -c nexus -n "__fish_nexus_using_subcommand access; and not __fish_seen_subcommand_from who link unlink set tag untag merge unmerge policies check audit help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from who" -s n -l limit -d 'How many contacts at most' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from who" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from who" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from who" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from link" -l name -d 'What the entity is called; an empty text takes the name away' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from link" -l relationship -d 'What the entity is to you, as policies name it: family, friend, ...' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from link" -l confidence -d 'How sure it is, from 0 to 1; below 0.5 the link is shown and makes nobody known' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from link" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from link" -l as-owner -d 'The entity may be the owner\'s: the sender gets the owner\'s session, name and tags, and none of the rights'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from link" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from link" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from unlink" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from unlink" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from unlink" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from set" -l name -d 'An empty text takes the name away' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from set" -l relationship -d 'An empty text takes the relationship away' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from set" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from set" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from tag" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from tag" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from tag" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from untag" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from untag" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from untag" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from merge" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from merge" -l as-owner -d 'INTO may be the owner\'s: FROM gets the owner\'s session, name and tags, and none of the rights'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from merge" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from merge" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from unmerge" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from unmerge" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from unmerge" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from policies" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from policies" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from policies" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from check" -l account -d 'The account that gets the message [default: default]' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from check" -l peer-kind -d 'Where it is said: dm, group or channel [default: dm]' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from check" -l peer -d 'The group\'s or channel\'s id [default: the sender]' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from check" -l content-type -d 'What it is: text, image, reaction, system/... [default: text]' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from check" -l at -d 'Local date and time, as 2026-01-02T23:30 [default: now]' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from check" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from check" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from audit" -s n -l limit -d 'How many at most' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from audit" -l sender -d 'Only decisions about this sender' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from audit" -l since -d 'Only decisions of this last time: 90s, 15m, 1h, 7d' -r
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from audit" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from audit" -l denied -d 'Only denials'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from audit" -l all -d 'Also those about the timer, as of heartbeats, which --denied and --sender show anyway'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from audit" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from audit" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "who" -d 'Show who wrote, newest first, or all that is known of a sender or an entity'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "link" -d 'Say that a sender belongs to an entity, which is made if there is none'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "unlink" -d 'Take a sender from its entity'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "set" -d 'Change what an entity is called, and what it is to you'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "tag" -d 'Put tags on an entity, for policies'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "untag" -d 'Take tags off an entity'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "merge" -d 'Have an entity count as another, with its senders and tags'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "unmerge" -d 'Have a merged entity count for itself again'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "policies" -d 'Show the policies in force, in their order'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "check" -d 'Show what would be decided about a sender, and why'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "audit" -d 'Show who was let in or denied, and why, newest first'
complete -c nexus -n "__fish_nexus_using_subcommand access; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and not __fish_seen_subcommand_from list show retry discard help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and not __fish_seen_subcommand_from list show retry discard help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and not __fish_seen_subcommand_from list show retry discard help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and not __fish_seen_subcommand_from list show retry discard help" -f -a "list" -d 'List the newest deliveries'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and not __fish_seen_subcommand_from list show retry discard help" -f -a "show" -d 'Show one delivery, with its whole text'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and not __fish_seen_subcommand_from list show retry discard help" -f -a "retry" -d 'Send some again; an uncertain one may then arrive twice'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and not __fish_seen_subcommand_from list show retry discard help" -f -a "discard" -d 'Give some up'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and not __fish_seen_subcommand_from list show retry discard help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from list" -l status -d 'Only deliveries of this status' -r -f -a "pending\t''
sending\t''
sent\t''
failed\t''
uncertain\t''
expired\t''
discarded\t''"
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from list" -l adapter -d 'Only deliveries by this adapter' -r
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from list" -s n -l limit -d 'How many at most' -r
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from list" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from list" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from show" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from show" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from retry" -l status -d 'With --all: those of this status' -r -f -a "uncertain\t''
failed\t''
expired\t''"
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from retry" -l adapter -d 'With --all: only those of this adapter' -r
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from retry" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from retry" -l all -d 'The oldest 500 of a status, in place of ids'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from retry" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from retry" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from discard" -l status -d 'With --all: those of this status' -r -f -a "uncertain\t''
failed\t''
expired\t''"
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from discard" -l adapter -d 'With --all: only those of this adapter' -r
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from discard" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from discard" -l all -d 'The oldest 500 of a status, in place of ids'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from discard" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from discard" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the newest deliveries'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show one delivery, with its whole text'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from help" -f -a "retry" -d 'Send some again; an uncertain one may then arrive twice'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from help" -f -a "discard" -d 'Give some up'
complete -c nexus -n "__fish_nexus_using_subcommand deliveries; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and not __fish_seen_subcommand_from list show fork archive stop help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and not __fish_seen_subcommand_from list show fork archive stop help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and not __fish_seen_subcommand_from list show fork archive stop help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and not __fish_seen_subcommand_from list show fork archive stop help" -f -a "list" -d 'List sessions, those with the newest turns first'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and not __fish_seen_subcommand_from list show fork archive stop help" -f -a "show" -d 'Show a session: what was said, newest last, and what it has used of its agents\' budgets'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and not __fish_seen_subcommand_from list show fork archive stop help" -f -a "fork" -d 'Begin a session under a new label that knows what was said in another one'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and not __fish_seen_subcommand_from list show fork archive stop help" -f -a "archive" -d 'Put a session away: its label begins anew with the next message'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and not __fish_seen_subcommand_from list show fork archive stop help" -f -a "stop" -d 'Stop the turn that runs in a session; what waits there goes on'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and not __fish_seen_subcommand_from list show fork archive stop help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from list" -s n -l limit -d 'How many at most' -r
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from list" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from list" -l all -d 'Archived ones too'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from list" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from show" -s n -l limit -d 'How many turns at most' -r
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from show" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from show" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from fork" -l at -d 'The last turn that the new one knows [default: the newest]' -r
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from fork" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from fork" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from fork" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from archive" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from archive" -l undo -d 'Take it back, as long as its label has not begun anew'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from archive" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from archive" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from stop" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from stop" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from stop" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from help" -f -a "list" -d 'List sessions, those with the newest turns first'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show a session: what was said, newest last, and what it has used of its agents\' budgets'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from help" -f -a "fork" -d 'Begin a session under a new label that knows what was said in another one'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from help" -f -a "archive" -d 'Put a session away: its label begins anew with the next message'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from help" -f -a "stop" -d 'Stop the turn that runs in a session; what waits there goes on'
complete -c nexus -n "__fish_nexus_using_subcommand sessions; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand doctor" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand doctor" -l repair -d 'Mend what is safe to mend: modes, and with no daemon running what a dead one left'
complete -c nexus -n "__fish_nexus_using_subcommand doctor" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand backup" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand backup" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand backup" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand restore" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand restore" -l resume -d 'Let everything go on that was open in the backup, as after a crash; only right if nothing was done since it was made'
complete -c nexus -n "__fish_nexus_using_subcommand restore" -s y -l yes -d 'Don\'t ask'
complete -c nexus -n "__fish_nexus_using_subcommand restore" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand restore" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and not __fish_seen_subcommand_from status whitelist keys publish relay demo help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and not __fish_seen_subcommand_from status whitelist keys publish relay demo help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and not __fish_seen_subcommand_from status whitelist keys publish relay demo help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and not __fish_seen_subcommand_from status whitelist keys publish relay demo help" -f -a "status" -d 'Show how each relay is, and what waits to be published'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and not __fish_seen_subcommand_from status whitelist keys publish relay demo help" -f -a "whitelist" -d 'Say whose events are heeded'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and not __fish_seen_subcommand_from status whitelist keys publish relay demo help" -f -a "keys" -d 'Show the keys by which the daemon and its agents speak, or bring one along'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and not __fish_seen_subcommand_from status whitelist keys publish relay demo help" -f -a "publish" -d 'Sign an event with one of those keys and publish it'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and not __fish_seen_subcommand_from status whitelist keys publish relay demo help" -f -a "relay" -d 'Run a small relay on this machine'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and not __fish_seen_subcommand_from status whitelist keys publish relay demo help" -f -a "demo" -d 'Show the whole story on this machine: a relay, a daemon, a project and its agent\'s signed answer'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and not __fish_seen_subcommand_from status whitelist keys publish relay demo help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from status" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from status" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from status" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from whitelist" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from whitelist" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from whitelist" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from whitelist" -f -a "list" -d 'List the keys whose events are heeded'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from whitelist" -f -a "add" -d 'Heed the events of a key from now on, and those of the last day'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from whitelist" -f -a "remove" -d 'Heed the events of a key no more'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from whitelist" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from keys" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from keys" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from keys" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from keys" -f -a "list" -d 'List the keys, without their secrets'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from keys" -f -a "import" -d 'Store a secret key under a name: `daemon`, or PROJECT/AGENT'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from keys" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from publish" -l kind -d 'Kind of the event' -r
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from publish" -l tag -d 'A tag: its name and its one value, or all of it as a JSON array of strings; may be given several times' -r
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from publish" -l as -d 'Whose key signs it: `daemon`, or PROJECT/AGENT' -r
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from publish" -l once -d 'Under the same word it is published once, however often this is called' -r
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from publish" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from publish" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from publish" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from relay" -l listen -d 'Where to listen; port 0 takes any that is free' -r
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from relay" -l directory -d 'Where its events are kept [default: ~/.nexus/relay]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from relay" -l max-mb -d 'How large the database may become' -r
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from relay" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from relay" -l auth -d 'Serve only those who say who they are (NIP-42)'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from relay" -l allow-external -d 'Let other machines connect'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from relay" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from relay" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from demo" -l home -d 'Keep everything in this directory and go on there next time [default: a temporary one, removed at the end]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from demo" -l say -d 'What is said to the agent' -r
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from demo" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from demo" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from demo" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from help" -f -a "status" -d 'Show how each relay is, and what waits to be published'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from help" -f -a "whitelist" -d 'Say whose events are heeded'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from help" -f -a "keys" -d 'Show the keys by which the daemon and its agents speak, or bring one along'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from help" -f -a "publish" -d 'Sign an event with one of those keys and publish it'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from help" -f -a "relay" -d 'Run a small relay on this machine'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from help" -f -a "demo" -d 'Show the whole story on this machine: a relay, a daemon, a project and its agent\'s signed answer'
complete -c nexus -n "__fish_nexus_using_subcommand nostr; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "list" -d 'List the projects'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "show" -d 'Show what a project is, and what it lacks'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "init" -d 'Prepare a project now: clone it, install its agents'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "start" -d 'Start a project\'s process, prepared first if need be'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "stop" -d 'Stop a project\'s process and the turn it is at, until the next event for it'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "restart" -d 'Restart a project\'s process'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "release" -d 'Let a project that crashed too often run again, with the next event for it'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "logs" -d 'Show what a project\'s process said of late'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "run" -d 'Run a project\'s agents: the process that the daemon starts'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "approvals" -d 'List what waits for your approval'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "approve" -d 'Approve or deny what a project wants to run'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "secret" -d 'Store secrets for the processes of a project'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "gc" -d 'List and put away projects that nobody uses'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "setup" -d 'Choose the model that answers in projects'
complete -c nexus -n "__fish_nexus_using_subcommand project; and not __fish_seen_subcommand_from list show init start stop restart release logs run approvals approve secret gc setup help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from list" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from list" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from show" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from show" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from init" -l path -d 'The directory that it is to have; one that is there already must be its repository' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from init" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from init" -l anew -d 'Look through its definition anew, though it was prepared from it'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from init" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from init" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from start" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from start" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from start" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from stop" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from stop" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from stop" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from restart" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from restart" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from restart" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from release" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from release" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from release" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from logs" -s n -l lines -d 'How many lines at most' -r
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from logs" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from logs" -s f -l follow -d 'Go on with what it says from now on'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from logs" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from logs" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from run" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from run" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from run" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from approvals" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from approvals" -l all -d 'Those that were decided about too'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from approvals" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from approvals" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from approve" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from approve" -l deny -d 'Say no, also to what was approved before'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from approve" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from approve" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from secret" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from secret" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from secret" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from secret" -f -a "set" -d 'Store one, under the name of the variable that it becomes; its value comes from stdin or a prompt'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from secret" -f -a "list" -d 'List their names'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from secret" -f -a "remove" -d 'Remove one'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from secret" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from gc" -l days -d 'List those that were not used for so many days' -r
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from gc" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from gc" -l delete -d 'Delete them instead of keeping them in an archive'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from gc" -l force -d 'Also with uncommitted files, unpushed commits or stashes'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from gc" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from gc" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -l agent -d 'Use this agent, which is configured already, and ask for nothing' -r
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -l name -d 'The name of the agent that is set up [default: projects]' -r
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -l provider -d 'Whose interface it is' -r -f -a "openai\t''
openai_resp\t''
anthropic\t''
gemini\t''
groq\t''
deepseek\t''
xai\t''
ollama\t''"
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -l model -d 'The model' -r
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -l url -d 'The interface\'s address [default: the provider\'s own; openai has none]' -r
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -l key-env -d 'The environment variable of the daemon that has the key' -r
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -l key-file -d 'The file that has the key' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -l key-stdin -d 'Read the key from stdin and store it where only you can read it'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from setup" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the projects'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show what a project is, and what it lacks'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "init" -d 'Prepare a project now: clone it, install its agents'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "start" -d 'Start a project\'s process, prepared first if need be'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "stop" -d 'Stop a project\'s process and the turn it is at, until the next event for it'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "restart" -d 'Restart a project\'s process'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "release" -d 'Let a project that crashed too often run again, with the next event for it'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "logs" -d 'Show what a project\'s process said of late'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "run" -d 'Run a project\'s agents: the process that the daemon starts'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "approvals" -d 'List what waits for your approval'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "approve" -d 'Approve or deny what a project wants to run'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "secret" -d 'Store secrets for the processes of a project'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "gc" -d 'List and put away projects that nobody uses'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "setup" -d 'Choose the model that answers in projects'
complete -c nexus -n "__fish_nexus_using_subcommand project; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and not __fish_seen_subcommand_from set list remove help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand credential; and not __fish_seen_subcommand_from set list remove help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and not __fish_seen_subcommand_from set list remove help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and not __fish_seen_subcommand_from set list remove help" -f -a "set" -d 'Store a credential; its value is asked for, or read from stdin'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and not __fish_seen_subcommand_from set list remove help" -f -a "list" -d 'List the names of stored credentials'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and not __fish_seen_subcommand_from set list remove help" -f -a "remove" -d 'Remove a stored credential'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and not __fish_seen_subcommand_from set list remove help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from set" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from set" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from list" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from list" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from remove" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from remove" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from help" -f -a "set" -d 'Store a credential; its value is asked for, or read from stdin'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the names of stored credentials'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Remove a stored credential'
complete -c nexus -n "__fish_nexus_using_subcommand credential; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand config; and not __fish_seen_subcommand_from check show schema reference help" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand config; and not __fish_seen_subcommand_from check show schema reference help" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand config; and not __fish_seen_subcommand_from check show schema reference help" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand config; and not __fish_seen_subcommand_from check show schema reference help" -f -a "check" -d 'Tell everything that is wrong or odd, each with its place'
complete -c nexus -n "__fish_nexus_using_subcommand config; and not __fish_seen_subcommand_from check show schema reference help" -f -a "show" -d 'Show every value in force, and where it comes from'
complete -c nexus -n "__fish_nexus_using_subcommand config; and not __fish_seen_subcommand_from check show schema reference help" -f -a "schema" -d 'Print the JSON Schema of the configuration, for editors'
complete -c nexus -n "__fish_nexus_using_subcommand config; and not __fish_seen_subcommand_from check show schema reference help" -f -a "reference" -d 'Print the reference of all keys, as Markdown'
complete -c nexus -n "__fish_nexus_using_subcommand config; and not __fish_seen_subcommand_from check show schema reference help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from check" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from check" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from show" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from show" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from schema" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from schema" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from schema" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from reference" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from reference" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from reference" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "check" -d 'Tell everything that is wrong or odd, each with its place'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show every value in force, and where it comes from'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "schema" -d 'Print the JSON Schema of the configuration, for editors'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "reference" -d 'Print the reference of all keys, as Markdown'
complete -c nexus -n "__fish_nexus_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand completions" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand completions" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand completions" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand version" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand version" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand version" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand __generate" -s c -l config -d 'Configuration file [default: $NEXUS_CONFIG, else ~/nexus/nex.yaml]' -r -F
complete -c nexus -n "__fish_nexus_using_subcommand __generate" -l json -d 'Print JSON, in a form that stays stable'
complete -c nexus -n "__fish_nexus_using_subcommand __generate" -s h -l help -d 'Print help'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "daemon" -d 'Start, stop and watch the daemon'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "adapter" -d 'Connect channels: the programs that read and write them, and their accounts'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "plugin" -d 'Use plugins: programs and scripts that see requests on their way, and may change them'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "automation" -d 'Use automations: scripts that are asked about events, and answer them, add to them or call an agent'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "send" -d 'Send one message and print the answer'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "chat" -d 'Talk to an agent, line by line'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "events" -d 'Show what came in and went out'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "trace" -d 'Show what became of an event: stages, decisions, deliveries'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "search" -d 'Find what agents were asked and what they answered'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "access" -d 'Say who is who, and see what they may and why'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "deliveries" -d 'Show and decide about messages on their way out'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "sessions" -d 'Show what was said in each session; fork, archive and stop sessions'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "doctor" -d 'Look at everything that the daemon needs and keeps, and say what to do about what is wrong'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "backup" -d 'Copy the ledgers and the configuration, of a running daemon too'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "restore" -d 'Put a backup in the place of the ledgers'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "nostr" -d 'Use Nostr: relays that events come from and go to'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "project" -d 'Use projects: directories in which agents work, activated by events of Nostr'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "credential" -d 'Store credentials for adapters'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "config" -d 'Check and show the configuration'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "completions" -d 'Print a completion script for a shell'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "version" -d 'Print the version'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "__generate" -d 'Write the generated documentation into a directory'
complete -c nexus -n "__fish_nexus_using_subcommand help; and not __fish_seen_subcommand_from daemon adapter plugin automation send chat events trace search access deliveries sessions doctor backup restore nostr project credential config completions version __generate help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from daemon" -f -a "start" -d 'Start the daemon, in the foreground unless --detach is given'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from daemon" -f -a "stop" -d 'Stop the daemon: what runs is finished and recorded first, for at most 45 s'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from daemon" -f -a "restart" -d 'Stop and start, with the flags it was started with'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from daemon" -f -a "status" -d 'Show what runs, and how it is'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from daemon" -f -a "reload" -d 'Apply a changed configuration to the running daemon'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from daemon" -f -a "logs" -d 'Show the log of a detached daemon'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "register" -d 'Add an adapter: a program that speaks the adapter protocol'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "unregister" -d 'Remove an adapter that `register` added'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "list" -d 'List the adapters'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "info" -d 'Show what an adapter says about itself'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "accounts" -d 'List an adapter\'s accounts, those configured and those it reports'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "account" -d 'Add and remove accounts'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "enable" -d 'Use an adapter, or one of its accounts, again'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "disable" -d 'Stop using an adapter, or one of its accounts, until it is enabled'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "start" -d 'Start an account\'s process'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "stop" -d 'Stop an account\'s process, until it or the daemon is started'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "restart" -d 'Restart an account\'s process, also an errored one'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "backfill" -d 'Fetch an account\'s history'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "status" -d 'Show how accounts are'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from adapter" -f -a "health" -d 'Probe an account\'s health now'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from plugin" -f -a "list" -d 'List the plugins, those that run and those that could'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from plugin" -f -a "info" -d 'Show what a plugin is, and how it does'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from plugin" -f -a "enable" -d 'Have a plugin run'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from plugin" -f -a "disable" -d 'Have a plugin run no more'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from plugin" -f -a "test" -d 'Start a plugin on its own, call it with an event, and show what it answers'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from plugin" -f -a "types" -d 'Print the types that plugins and automations in TypeScript are written against'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from automation" -f -a "register" -d 'Put a file among the automations, from where it runs'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from automation" -f -a "list" -d 'List the automations, those that run and those that don\'t'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from automation" -f -a "info" -d 'Show what an automation is, what it knows, and how it does'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from automation" -f -a "enable" -d 'Have an automation asked, also one that disabled itself'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from automation" -f -a "disable" -d 'Have an automation asked no more'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from automation" -f -a "delete" -d 'Remove an automation\'s file, and what it knows'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from automation" -f -a "test" -d 'Ask an automation about an event in a process of its own, and show what it says'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from events" -f -a "tail" -d 'Show the newest events'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from events" -f -a "show" -d 'Show one event with all its fields'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from events" -f -a "replay" -d 'Run a received event again: a new request, linked to the first'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from events" -f -a "search" -d 'Find events by their text'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from trace" -f -a "show" -d 'Show one request: its stages, decisions and deliveries'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from trace" -f -a "retry" -d 'Run a request again that failed or expired: a new one, linked to it'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from trace" -f -a "list" -d 'List the newest requests'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "who" -d 'Show who wrote, newest first, or all that is known of a sender or an entity'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "link" -d 'Say that a sender belongs to an entity, which is made if there is none'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "unlink" -d 'Take a sender from its entity'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "set" -d 'Change what an entity is called, and what it is to you'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "tag" -d 'Put tags on an entity, for policies'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "untag" -d 'Take tags off an entity'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "merge" -d 'Have an entity count as another, with its senders and tags'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "unmerge" -d 'Have a merged entity count for itself again'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "policies" -d 'Show the policies in force, in their order'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "check" -d 'Show what would be decided about a sender, and why'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from access" -f -a "audit" -d 'Show who was let in or denied, and why, newest first'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from deliveries" -f -a "list" -d 'List the newest deliveries'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from deliveries" -f -a "show" -d 'Show one delivery, with its whole text'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from deliveries" -f -a "retry" -d 'Send some again; an uncertain one may then arrive twice'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from deliveries" -f -a "discard" -d 'Give some up'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from sessions" -f -a "list" -d 'List sessions, those with the newest turns first'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from sessions" -f -a "show" -d 'Show a session: what was said, newest last, and what it has used of its agents\' budgets'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from sessions" -f -a "fork" -d 'Begin a session under a new label that knows what was said in another one'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from sessions" -f -a "archive" -d 'Put a session away: its label begins anew with the next message'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from sessions" -f -a "stop" -d 'Stop the turn that runs in a session; what waits there goes on'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from nostr" -f -a "status" -d 'Show how each relay is, and what waits to be published'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from nostr" -f -a "whitelist" -d 'Say whose events are heeded'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from nostr" -f -a "keys" -d 'Show the keys by which the daemon and its agents speak, or bring one along'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from nostr" -f -a "publish" -d 'Sign an event with one of those keys and publish it'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from nostr" -f -a "relay" -d 'Run a small relay on this machine'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from nostr" -f -a "demo" -d 'Show the whole story on this machine: a relay, a daemon, a project and its agent\'s signed answer'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "list" -d 'List the projects'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "show" -d 'Show what a project is, and what it lacks'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "init" -d 'Prepare a project now: clone it, install its agents'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "start" -d 'Start a project\'s process, prepared first if need be'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "stop" -d 'Stop a project\'s process and the turn it is at, until the next event for it'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "restart" -d 'Restart a project\'s process'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "release" -d 'Let a project that crashed too often run again, with the next event for it'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "logs" -d 'Show what a project\'s process said of late'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "run" -d 'Run a project\'s agents: the process that the daemon starts'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "approvals" -d 'List what waits for your approval'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "approve" -d 'Approve or deny what a project wants to run'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "secret" -d 'Store secrets for the processes of a project'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "gc" -d 'List and put away projects that nobody uses'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from project" -f -a "setup" -d 'Choose the model that answers in projects'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from credential" -f -a "set" -d 'Store a credential; its value is asked for, or read from stdin'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from credential" -f -a "list" -d 'List the names of stored credentials'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from credential" -f -a "remove" -d 'Remove a stored credential'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from config" -f -a "check" -d 'Tell everything that is wrong or odd, each with its place'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from config" -f -a "show" -d 'Show every value in force, and where it comes from'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from config" -f -a "schema" -d 'Print the JSON Schema of the configuration, for editors'
complete -c nexus -n "__fish_nexus_using_subcommand help; and __fish_seen_subcommand_from config" -f -a "reference" -d 'Print the reference of all keys, as Markdown'
