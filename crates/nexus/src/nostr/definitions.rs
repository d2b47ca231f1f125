//! Definitions into the ledger, and word of the projects that change by them. Which of several versions counts, the
//! ledger knows.

use super::Inner;
use super::sort::DELETION;
use crate::clock;
use crate::error_text::describe;
use crate::ledger::nexus::{Definition, Deleted, Put, PutDefinitions, projects_defined_by};
use crate::ledger::writer::WriteError;
use crate::project::coordinate::Coordinate;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Inner {
    /// Stores definitions and tells of the projects that changed.
    pub(crate) async fn put(&self, definitions: Vec<Definition>) -> Result<Vec<Put>, WriteError> {
        let definitions = Arc::new(definitions);
        let command = PutDefinitions { definitions: definitions.clone(), at: clock::wall_ms() };
        let put = self.ground.ledgers.nexus.writer.write_until_done(command).await?;
        let kinds = self.plan.load().project_kinds.clone();
        for (definition, put) in definitions.iter().zip(&put) {
            match put {
                Put::Counts => self.tell(definition, &[], &kinds).await,
                Put::Deletes(by_id) => self.tell(definition, by_id, &kinds).await,
                Put::Outdated => {}
            }
        }
        Ok(put)
    }

    /// Tells of the projects that a definition changes; `by_id` is where it took away what it names by id.
    async fn tell(&self, definition: &Definition, by_id: &[String], project_kinds: &[u16]) {
        let coordinate = |text: &str| Coordinate::parse(text).ok().filter(|coordinate| project_kinds.contains(&coordinate.kind));
        let changed: Vec<Coordinate> = if definition.kind == DELETION {
            let named = definition.deletes.iter().filter_map(|deleted| match deleted {
                Deleted::Coordinate(text) => Some(text.clone()),
                Deleted::Event(_) => None,
            });
            let named: BTreeSet<String> = named.chain(by_id.iter().cloned()).chain(self.prepared_from(definition).await).collect();
            named.iter().filter_map(|text| coordinate(text)).collect()
        } else {
            let identifier = definition.identifier.as_deref().unwrap_or_default();
            let text = crate::ledger::nexus::coordinate(definition.kind, &definition.pubkey, identifier);
            coordinate(&text).into_iter().collect()
        };
        for one in changed {
            // An error means that nobody listens.
            self.redefined.send(one).ok();
        }
    }

    /// The projects that were prepared from an event which a deletion names by its id.
    async fn prepared_from(&self, deletion: &Definition) -> Vec<String> {
        let ids = deletion.deletes.iter().filter_map(|deleted| match deleted {
            Deleted::Event(id) => Some(id.clone()),
            Deleted::Coordinate(_) => None,
        });
        let (ids, pubkey): (Vec<String>, String) = (ids.collect(), deletion.pubkey.clone());
        if ids.is_empty() {
            return Vec::new();
        }
        let read = move |connection: &rusqlite::Connection| projects_defined_by(connection, &pubkey, &ids);
        self.ground.ledgers.nexus.readers.read(read).await.unwrap_or_else(|error| {
            tracing::warn!(error = %describe(&error), "that a definition was deleted is seen with the project's next start only");
            Vec::new()
        })
    }
}
