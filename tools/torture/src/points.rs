//! The fail points that a long run has to come to: all, but for those that nothing in a world passes.

/// How the names of the writers' commands begin, one before and one after each.
const OF_COMMANDS: &str = "write.";

/// Commands that nothing in a world brings about, each with why. They are named in the report, and never due.
const OUT_OF_REACH: &[(&str, &str)] = &[
    ("RecordCall", "it needs a model with an endpoint, and no world has one"),
    ("EndStream", "an answer that is being shown is parted for a question of an agent that asks its owner, and no agent does"),
];

/// Why nothing brings about the command of this point, if that is so.
fn out_of_reach(point: &str) -> Option<&'static str> {
    let command = point.strip_prefix(OF_COMMANDS)?.split('.').next()?;
    OUT_OF_REACH.iter().find(|(name, _)| *name == command).map(|(_, why)| *why)
}

/// Those of all points at which a run has to have fired, each at least once.
pub(crate) fn due(all: &[String]) -> Vec<String> {
    all.iter().filter(|point| out_of_reach(point).is_none()).cloned().collect()
}

/// Sentences about the commands among all points that are out of reach.
pub(crate) fn excused(all: &[String]) -> Vec<String> {
    let is_there = |command: &str| all.iter().any(|point| point.starts_with(&format!("{OF_COMMANDS}{command}.")));
    OUT_OF_REACH.iter().filter(|(command, _)| is_there(command)).map(|(command, why)| format!("`{command}`: {why}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_points_are_due_but_for_those_out_of_reach() {
        let names = ["write.Keep.before", "write.Keep.after", "write.RecordCall.before", "write.RecordCallers.before", "start.lock"];
        let all = names.map(str::to_owned);
        assert_eq!(due(&all), ["write.Keep.before", "write.Keep.after", "write.RecordCallers.before", "start.lock"]);
        assert_eq!(excused(&all), ["`RecordCall`: it needs a model with an endpoint, and no world has one"]);
        assert_eq!(excused(&all[..2]), Vec::<String>::new(), "a daemon without the command has nothing to excuse");
    }
}
