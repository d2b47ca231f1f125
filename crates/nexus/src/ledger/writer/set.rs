//! How the closed set of one file's commands is declared, what each weighs in the writer's queue, and what it outdates.

/// Declares the closed command set of one file: each command type with its reply.
macro_rules! commands {
    ($ledger:expr, $set:ident / $replies:ident { $($name:ident -> $reply:ty),* $(,)? }) => {
        /// Every command of this file.
        #[derive(Debug)]
        pub enum $set { $($name($name)),* }

        #[derive(Debug)]
        pub enum $replies { $($name($reply)),* }

        impl $crate::ledger::writer::Command for $set {
            type Reply = $replies;
            const LEDGER: $crate::ledger::Ledger = $ledger;

            fn apply(&self, connection: &rusqlite::Connection) -> rusqlite::Result<$replies> {
                match self { $(Self::$name(command) => command.apply(connection).map($replies::$name)),* }
            }
            fn bytes(&self) -> usize {
                match self { $(Self::$name(command) => $crate::ledger::writer::Weight::bytes(command)),* }
            }
            fn rows(&self) -> usize {
                match self { $(Self::$name(command) => $crate::ledger::writer::Weight::rows(command)),* }
            }
            fn outdates(&self) -> bool {
                match self { $(Self::$name(command) => $crate::ledger::writer::Weight::outdates(command)),* }
            }
            fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name)),* }
            }
            const POINTS: &'static [[&'static str; 2]] =
                &[$([concat!("write.", stringify!($name), ".before"), concat!("write.", stringify!($name), ".after")]),*];
            fn points(&self) -> [&'static str; 2] {
                match self {
                    $(Self::$name(_) => [concat!("write.", stringify!($name), ".before"), concat!("write.", stringify!($name), ".after")]),*
                }
            }
        }

        $(impl $crate::ledger::writer::Write for $name {
            type Set = $set;
            type Reply = $reply;
            fn into_command(self) -> $set { $set::$name(self) }
            #[allow(unreachable_patterns, clippy::wildcard_enum_match_arm, reason = "a set may have one command")]
            fn from_reply(reply: $replies) -> Option<$reply> {
                match reply { $replies::$name(reply) => Some(reply), _ => None }
            }
        })*
    };
}
pub(crate) use commands;

/// Sizes for the queue's budget, with defaults that fit a small command.
pub(crate) trait Weight {
    fn bytes(&self) -> usize {
        256
    }
    fn rows(&self) -> usize {
        1
    }
    /// Answers of this file are kept in memory, and may be others once it is committed.
    fn outdates(&self) -> bool {
        false
    }
}
