//! What the project tells of itself while it runs: a status event (kind 24010) each half minute, signed by its
//! manager. Relays don't keep it; one that is lost is followed by the next.

use super::answer::Desk;
use super::link::Link;
use crate::nostr::Template;
use std::sync::Arc;
use std::time::Duration;

/// The kind of a project's status.
const STATUS: u16 = 24_010;
const EVERY: Duration = Duration::from_secs(30);
/// Tools that one status tells, and their bytes with those of the agents behind them: relays refuse large events.
const TOOLS_MAX: usize = 256;
const TOOLS_BYTES_MAX: usize = 32 * 1024;

/// Tells for as long as it isn't dropped; at once at first.
pub(super) async fn tell(desk: Arc<Desk>, link: Link) {
    let Some(manager) = desk.manager().map(|agent| agent.slug.clone()) else { return };
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        if let Err(error) = link.publish(&manager, template(&desk), None).await {
            tracing::debug!(error, "the status was not announced");
        }
    }
}

fn template(desk: &Desk) -> Template {
    let tag = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    let mut tags = vec![tag(&["a", &desk.project.coordinate.to_string()])];
    tags.extend(desk.project.agents.iter().map(|agent| tag(&["agent", &agent.pubkey, &agent.slug])));
    let slugs: Vec<&str> = desk.project.agents.iter().map(|agent| agent.slug.as_str()).collect();
    tags.push([vec!["model", desk.model.as_str()], slugs].concat().into_iter().map(str::to_owned).collect());
    let mut bytes = 0;
    for (name, who) in desk.tools().iter().take(TOOLS_MAX) {
        bytes += name.len() + who.iter().map(|slug| slug.len()).sum::<usize>();
        if bytes > TOOLS_BYTES_MAX {
            break;
        }
        tags.push([vec!["tool", name.as_str()], who.clone()].concat().into_iter().map(str::to_owned).collect());
    }
    Template { kind: STATUS, content: String::new(), tags, created_at: None }
}
