//! The section `automations`: what each may call and use, and which of them don't run. Which ones lie on the disk is
//! not known here.

use super::decode::named;
use super::grant::Grant;
use super::models::CallBudget;
use super::plugins::plugin_names;
use std::collections::BTreeMap;

section! {
    /// What automations may do, and which of them don't run. They are the files in `state/automations`.
    Automations {
        /// Names of automations that don't run; `nexus automation disable` adds to them.
        disabled: Vec<String> = Vec::new() => plugin_names;
        /// What each automation may call, by its name: as in `plugins.grants`. Nothing by default.
        grants: BTreeMap<String, Vec<Grant>> = BTreeMap::new() => named;
        /// What each automation may use of models in a day, by its name: as in `plugins.budgets`.
        budgets: BTreeMap<String, CallBudget> = BTreeMap::new() => named;
    }
}
