//! The subscriptions of one connection: asked, complete without a gap, refused. A relay gives back as many stored
//! events as it likes, the newest first; so what it has is asked for again, up to the oldest that came, until an
//! answer is empty. Only then is known that nothing is missing. An answer of which everything was refused is not empty:
//! what is older than that may be as good as any.

use super::{Action, Now};
use std::collections::BTreeMap;

/// How long a relay may take to send what it has.
const STORED_WAIT_MS: u64 = 15_000;
/// Pauses before a refused subscription is asked for again.
const REFUSED_BASE_MS: u64 = 2_000;
const REFUSED_MAX_MS: u64 = 300_000;
/// One that is heard for so long was never refused.
const HELD_MS: u64 = 60_000;
/// Pages of one subscription after a reconnection. Beyond, what is older is given up, and told.
const PAGES_MAX: u32 = 1_000;
/// Those of them of which everything was refused.
const REFUSED_PAGES_MAX: u32 = 100;
/// Events of one answer from which on it may be all that the relay gives at once. Relays give that many at least.
const PAGE_FULL: u32 = 100;
/// Refusals for want of a proof after which no other proof is made.
const PROOFS_MAX: u32 = 2;

/// The id under which a subscription's older events are asked for.
pub(crate) fn page_id(sub: &str) -> String {
    format!("{sub}-p")
}

/// The lowest times of what came of one answer, in Unix seconds, and how much that was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Oldest {
    good: Option<u64>,
    refused: Option<u64>,
    /// Events that came at all.
    events: u32,
}

impl Oldest {
    /// Where the next answer begins: by what was refused only where nothing else came. Who lies about a time can
    /// lead past nothing that comes beside it.
    fn next(self) -> Option<u64> {
        self.good.or(self.refused)
    }

    fn is_all_refused(self) -> bool {
        self.good.is_none() && self.refused.is_some()
    }
}

/// How many of a subscription's pages were asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pages {
    all: u32,
    /// Behind an answer of which everything was refused.
    refused: u32,
    /// Events of the largest answer.
    largest: u32,
}

impl Pages {
    fn behind(self, oldest: Oldest) -> Self {
        let largest = self.largest.max(oldest.events);
        Self { all: self.all + 1, refused: self.refused + u32::from(oldest.is_all_refused()), largest }
    }

    /// Whether the relay may have held back some of an answer: it is as large as any.
    fn may_be_cut(self, oldest: Oldest) -> bool {
        oldest.events >= PAGE_FULL.max(self.largest)
    }

    fn are_too_many(self) -> bool {
        self.all > PAGES_MAX || self.refused > REFUSED_PAGES_MAX
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Not asked for yet.
    Idle,
    /// Asked for at `at_s`; its stored events come.
    Asked {
        at_s: u64,
        deadline: u64,
        oldest: Oldest,
    },
    /// What is older than the oldest that came is asked for.
    Paging {
        at_s: u64,
        deadline: u64,
        until: u64,
        oldest: Oldest,
        pages: Pages,
    },
    /// All that there was came; from now on what is new comes.
    Live {
        since: u64,
    },
    Refused {
        retry_at: u64,
        why: String,
        for_proof: bool,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Sub {
    phase: Phase,
    /// Refusals in a row.
    failures: u32,
    /// The last time it was asked for, what it has stored came to no end.
    is_endless: bool,
}

impl Sub {
    fn new() -> Self {
        Self { phase: Phase::Idle, failures: 0, is_endless: false }
    }

    /// Its ids that are open on the wire.
    pub(super) fn open_ids(&self, id: &str) -> Vec<String> {
        match self.phase {
            Phase::Idle | Phase::Refused { .. } => Vec::new(),
            Phase::Asked { .. } | Phase::Live { .. } => vec![id.to_owned()],
            Phase::Paging { .. } => vec![id.to_owned(), page_id(id)],
        }
    }

    fn refuse(&mut self, now: Now, why: &str, for_proof: bool) {
        if let Phase::Live { since } = self.phase
            && now.mono_ms.saturating_sub(since) >= HELD_MS
        {
            self.failures = 0;
        }
        let pause = REFUSED_BASE_MS.saturating_mul(1 << self.failures.min(16)).min(REFUSED_MAX_MS);
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Refused { retry_at: now.mono_ms + pause, why: why.to_owned(), for_proof };
    }

    /// Whether it is worth waiting for what it has stored: one that told no end of it would hold up the others again
    /// and again.
    fn is_gathering(&self) -> bool {
        matches!(self.phase, Phase::Asked { .. } | Phase::Paging { .. }) && !self.is_endless
    }

    fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Idle => Some(0),
            Phase::Live { .. } => None,
            Phase::Asked { deadline, .. } | Phase::Paging { deadline, .. } => Some(deadline),
            Phase::Refused { retry_at, .. } => Some(retry_at),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Subs {
    all: BTreeMap<String, Sub>,
}

impl Subs {
    /// Takes in what is wanted; what isn't any more is returned.
    pub(super) fn want(&mut self, ids: Vec<String>) -> BTreeMap<String, Sub> {
        let mut before = std::mem::take(&mut self.all);
        for id in ids {
            let sub = before.remove(&id).unwrap_or_else(Sub::new);
            self.all.insert(id, sub);
        }
        before
    }

    /// Has all be asked for again; returns them as they were.
    pub(super) fn forget_all(&mut self) -> BTreeMap<String, Sub> {
        let before = self.all.clone();
        self.disconnected();
        before
    }

    pub(super) fn disconnected(&mut self) {
        for sub in self.all.values_mut() {
            sub.phase = Phase::Idle;
        }
    }

    /// What was refused for want of a proof is asked for at once, unless proofs don't help.
    pub(super) fn authenticated(&mut self, now: Now) {
        for sub in self.all.values_mut() {
            let may_help = sub.failures <= PROOFS_MAX;
            if let Phase::Refused { retry_at, for_proof: true, .. } = &mut sub.phase
                && may_help
            {
                *retry_at = now.mono_ms;
            }
        }
    }

    pub(super) fn any_refused(&self) -> bool {
        self.all.values().any(|sub| matches!(sub.phase, Phase::Refused { .. }))
    }

    pub(super) fn all_live(&self) -> bool {
        self.all.values().all(|sub| matches!(sub.phase, Phase::Live { .. }))
    }

    pub(super) fn any_gathering(&self) -> bool {
        self.all.values().any(Sub::is_gathering)
    }

    /// Whether what comes under this id now was stored: of pages all that comes before their end, else what is new.
    pub(super) fn is_stored(&self, wire: &str) -> bool {
        // Asked of every event.
        let (sub, is_page) = match (self.all.get(wire), wire.strip_suffix("-p")) {
            (None, Some(id)) => (self.all.get(id), true),
            (sub, _) => (sub, false),
        };
        match sub.map(|sub| &sub.phase) {
            Some(Phase::Asked { .. }) => !is_page,
            Some(Phase::Paging { .. }) => is_page,
            Some(Phase::Idle | Phase::Live { .. } | Phase::Refused { .. }) | None => false,
        }
    }

    pub(super) fn is_live(&self, id: &str) -> bool {
        self.all.get(id).is_some_and(|sub| matches!(sub.phase, Phase::Live { .. }))
    }

    pub(super) fn live(&self) -> Vec<String> {
        self.all.keys().filter(|id| self.is_live(id)).cloned().collect()
    }

    pub(super) fn refused(&self) -> Vec<(String, String)> {
        let refused = |(id, sub): (&String, &Sub)| match &sub.phase {
            Phase::Refused { why, .. } => Some((id.clone(), why.clone())),
            Phase::Idle | Phase::Asked { .. } | Phase::Paging { .. } | Phase::Live { .. } => None,
        };
        self.all.iter().filter_map(refused).collect()
    }

    /// Whether another proof may help a subscription that was refused.
    pub(super) fn may_prove(&self, id: &str) -> bool {
        self.all.get(id).is_some_and(|sub| sub.failures <= PROOFS_MAX)
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.all.values().filter_map(Sub::deadline).min()
    }

    /// The subscription of an id on the wire, and whether the id is that of its pages.
    fn of(&self, wire: &str) -> Option<(String, bool)> {
        if self.all.contains_key(wire) {
            return Some((wire.to_owned(), false));
        }
        let id = wire.strip_suffix("-p")?;
        self.all.contains_key(id).then(|| (id.to_owned(), true))
    }

    pub(super) fn event(&mut self, wire: &str, created_at: u64) {
        let Some((id, is_page)) = self.of(wire) else { return };
        let Some(sub) = self.all.get_mut(&id) else { return };
        match (&mut sub.phase, is_page) {
            (Phase::Asked { oldest, .. }, false) | (Phase::Paging { oldest, .. }, true) => {
                oldest.events = oldest.events.saturating_add(1);
                lower(&mut oldest.good, created_at);
            }
            (Phase::Idle | Phase::Asked { .. } | Phase::Paging { .. } | Phase::Live { .. } | Phase::Refused { .. }, _) => {}
        }
    }

    /// What was refused still says that the answer has it, and how far back it goes; without a time, no further than to
    /// where it began.
    pub(super) fn refused_event(&mut self, wire: &str, created_at: Option<u64>) {
        let Some((id, is_page)) = self.of(wire) else { return };
        let Some(sub) = self.all.get_mut(&id) else { return };
        match (&mut sub.phase, is_page) {
            (Phase::Asked { at_s: latest, oldest, .. }, false) | (Phase::Paging { until: latest, oldest, .. }, true) => {
                oldest.events = oldest.events.saturating_add(1);
                lower(&mut oldest.refused, created_at.unwrap_or(*latest));
            }
            (Phase::Idle | Phase::Asked { .. } | Phase::Paging { .. } | Phase::Live { .. } | Phase::Refused { .. }, _) => {}
        }
    }

    pub(super) fn eose(&mut self, now: Now, wire: &str, actions: &mut Vec<Action>) {
        let Some((id, is_page)) = self.of(wire) else { return };
        let Some(sub) = self.all.get_mut(&id) else { return };
        match (sub.phase.clone(), is_page) {
            (Phase::Asked { at_s, oldest, .. }, false) => {
                go_back(sub, &id, at_s, oldest.next(), Pages::default().behind(oldest), now, actions);
            }
            (Phase::Paging { at_s, until, oldest, pages, .. }, true) => {
                actions.push(Action::Close(page_id(&id)));
                // A page of one second only: what else that second has, nobody can ask for.
                let next = oldest.next().and_then(|oldest| if oldest < until { Some(oldest) } else { until.checked_sub(1) });
                if oldest.next().is_some_and(|oldest| oldest >= until) && pages.may_be_cut(oldest) {
                    let many = oldest.events;
                    actions.push(Action::Hole(format!("`{id}` has {many} events of one second, and maybe more that it doesn't give")));
                }
                go_back(sub, &id, at_s, next, pages.behind(oldest), now, actions);
            }
            (Phase::Idle | Phase::Asked { .. } | Phase::Paging { .. } | Phase::Live { .. } | Phase::Refused { .. }, _) => {}
        }
    }

    /// The relay ended one. False when there is none of that id.
    pub(super) fn closed(&mut self, now: Now, wire: &str, message: &str, actions: &mut Vec<Action>) -> bool {
        let Some((id, is_page)) = self.of(wire) else { return false };
        let Some(sub) = self.all.get_mut(&id) else { return false };
        match (&sub.phase, is_page) {
            (Phase::Idle | Phase::Refused { .. }, _) | (Phase::Asked { .. } | Phase::Live { .. }, true) => return false,
            (Phase::Asked { .. } | Phase::Live { .. }, false) => {}
            // The other of the two is still open.
            (Phase::Paging { .. }, true) => actions.push(Action::Close(id.clone())),
            (Phase::Paging { .. }, false) => actions.push(Action::Close(page_id(&id))),
        }
        let why = if message.is_empty() { "closed without a reason" } else { message };
        sub.refuse(now, why, message.starts_with("auth-required"));
        true
    }

    /// Asks for what is to be asked for now, and gives up what takes too long.
    pub(super) fn go_on(&mut self, now: Now, actions: &mut Vec<Action>) {
        for (id, sub) in &mut self.all {
            let open = sub.open_ids(id);
            match &sub.phase {
                Phase::Asked { deadline, .. } | Phase::Paging { deadline, .. } if now.mono_ms >= *deadline => {
                    actions.extend(open.into_iter().map(Action::Close));
                    sub.refuse(now, "no end of what it has stored", false);
                    sub.is_endless = true;
                }
                Phase::Refused { retry_at, .. } if now.mono_ms >= *retry_at => ask(sub, id, now, actions),
                Phase::Idle => ask(sub, id, now, actions),
                Phase::Asked { .. } | Phase::Paging { .. } | Phase::Live { .. } | Phase::Refused { .. } => {}
            }
        }
    }
}

fn ask(sub: &mut Sub, id: &str, now: Now, actions: &mut Vec<Action>) {
    sub.phase = Phase::Asked { at_s: now.wall_s, deadline: now.mono_ms + STORED_WAIT_MS, oldest: Oldest::default() };
    actions.push(Action::Ask(id.to_owned()));
}

/// Asks for what a subscription has up to `next`; it is complete without one.
fn go_back(sub: &mut Sub, id: &str, at_s: u64, next: Option<u64>, pages: Pages, now: Now, actions: &mut Vec<Action>) {
    match next {
        Some(_) if pages.are_too_many() => {
            let why = "more pages of events than are looked at, or too many of which everything was refused";
            actions.push(Action::Hole(format!("`{id}` has {why}; what is older is left out")));
            complete(sub, id, at_s, now, actions);
        }
        Some(until) => page(sub, id, at_s, until, pages, now, actions),
        None => complete(sub, id, at_s, now, actions),
    }
}

fn page(sub: &mut Sub, id: &str, at_s: u64, until: u64, pages: Pages, now: Now, actions: &mut Vec<Action>) {
    sub.phase = Phase::Paging { at_s, deadline: now.mono_ms + STORED_WAIT_MS, until, oldest: Oldest::default(), pages };
    actions.push(Action::AskPage { sub: id.to_owned(), until });
}

fn complete(sub: &mut Sub, id: &str, at_s: u64, now: Now, actions: &mut Vec<Action>) {
    sub.phase = Phase::Live { since: now.mono_ms };
    sub.is_endless = false;
    actions.push(Action::Proven { sub: id.to_owned(), until: at_s });
}

fn lower(oldest: &mut Option<u64>, created_at: u64) {
    *oldest = Some(oldest.map_or(created_at, |known| known.min(created_at)));
}
