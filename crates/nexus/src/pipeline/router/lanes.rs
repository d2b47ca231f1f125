//! Conversations: which request of which conversation may be prepared next. Pure bookkeeping.

use nexus_core::ids::AccountKey;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Ready conversations whose event is kept in memory; the others' are read back.
const AT_HAND_MAX: usize = 256;

/// A request's place: its names are shared with its lane, since a hundred thousand may wait.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) conversation: Arc<str>,
    pub(super) account: Arc<AccountKey>,
    /// It is started within the next few: worth keeping its event at hand.
    pub(super) soon: bool,
}

#[derive(Debug)]
struct Lane {
    name: Arc<str>,
    account: Arc<AccountKey>,
    waiting: VecDeque<i64>,
    busy: bool,
}

/// All conversations with something to do.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<Arc<str>, Lane>,
    /// Idle lanes with something waiting, in the order in which they became so.
    ready: VecDeque<Arc<str>>,
    /// How many holds each held account has: a new one may begin before the last one's end is heard of.
    held: HashMap<AccountKey, usize>,
    /// Busy lanes whose next request may not go before an instant of the router's clock, in ms, by that and the request.
    put_off: BTreeMap<(u64, i64), Arc<str>>,
    /// Requests in stages 1 to 5. A lane stays busy beyond that, until its request's run starts.
    preparing: usize,
}

impl Lanes {
    /// Queues a request.
    pub(super) fn push(&mut self, conversation: &str, account: &AccountKey, seq: i64) -> Place {
        if !self.lanes.contains_key(conversation) {
            let name: Arc<str> = conversation.into();
            let lane = Lane { name: name.clone(), account: Arc::new(account.clone()), waiting: VecDeque::new(), busy: false };
            self.lanes.insert(name, lane);
        }
        let lane = &mut self.lanes.get_mut(conversation).expect("inserted above");
        lane.waiting.push_back(seq);
        let next = lane.waiting.len() == 1 && !lane.busy;
        let startable = next && !self.held.contains_key(account);
        let soon = startable && self.ready.len() < AT_HAND_MAX;
        if startable {
            self.ready.push_back(lane.name.clone());
        }
        Place { conversation: lane.name.clone(), account: lane.account.clone(), soon }
    }

    /// The next request to prepare, if fewer than `limit` are being prepared.
    pub(super) fn start_next(&mut self, limit: usize) -> Option<i64> {
        while self.preparing < limit {
            let conversation = self.ready.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&conversation) else { continue };
            if lane.busy || self.held.contains_key(&*lane.account) {
                continue;
            }
            if let Some(seq) = lane.waiting.pop_front() {
                lane.busy = true;
                self.preparing += 1;
                return Some(seq);
            }
        }
        None
    }

    /// The request that was to be prepared goes back to the head of its lane, which waits until `until_ms`.
    pub(super) fn put_off(&mut self, conversation: &str, seq: i64, until_ms: u64) {
        self.prepared();
        let Some(lane) = self.lanes.get_mut(conversation) else { return };
        lane.waiting.push_front(seq);
        self.put_off.insert((until_ms, seq), lane.name.clone());
    }

    /// Lets go on whatever was put off until now.
    pub(super) fn offer_due(&mut self, now_ms: u64) {
        while let Some(next) = self.put_off.first_entry()
            && next.key().0 <= now_ms
        {
            let conversation = next.remove();
            self.finished(&conversation);
        }
    }

    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.put_off.first_key_value().map(|((until_ms, _), _)| *until_ms)
    }

    /// A request whose context was dropped goes through stages 1 to 5 once more.
    pub(super) fn preparing_again(&mut self) {
        self.preparing += 1;
    }

    /// A request is past stage 5: another conversation's may be prepared.
    pub(super) fn prepared(&mut self) {
        self.preparing = self.preparing.saturating_sub(1);
    }

    /// The lane's request runs or is over: its next may be prepared.
    pub(super) fn finished(&mut self, conversation: &str) {
        let Some(lane) = self.lanes.get_mut(conversation) else { return };
        lane.busy = false;
        if lane.waiting.is_empty() {
            self.lanes.remove(conversation);
        } else if !self.held.contains_key(&*lane.account) {
            self.ready.push_back(lane.name.clone());
        }
    }

    pub(super) fn hold(&mut self, account: &AccountKey) {
        *self.held.entry(account.clone()).or_default() += 1;
    }

    pub(super) fn release(&mut self, account: &AccountKey) {
        let Some(holds) = self.held.get_mut(account) else { return };
        *holds -= 1;
        if *holds == 0 {
            self.held.remove(account);
            let lanes = self.lanes.iter().filter(|(_, lane)| *lane.account == *account && !lane.busy && !lane.waiting.is_empty());
            let mut ready: Vec<(i64, Arc<str>)> = lanes.filter_map(|(name, lane)| Some((*lane.waiting.front()?, name.clone()))).collect();
            ready.sort();
            self.ready.extend(ready.into_iter().map(|(_, name)| name));
        }
    }

    /// Nothing to do, but with the holds of `before`: those who hold don't know that it began anew.
    pub(super) fn holding_as(before: Self) -> Self {
        Self { held: before.held, ..Self::default() }
    }

    /// Requests in stages 1 to 5.
    pub(super) fn preparing(&self) -> usize {
        self.preparing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountKey {
        AccountKey::new("a", name)
    }

    #[test]
    fn one_at_a_time_per_conversation_and_in_order() {
        let mut lanes = Lanes::default();
        for (lane, seq) in [("x", 1), ("x", 2), ("y", 3), ("x", 4)] {
            lanes.push(lane, &account("1"), seq);
        }
        assert_eq!(lanes.start_next(9), Some(1));
        assert_eq!(lanes.start_next(9), Some(3));
        assert_eq!(lanes.start_next(9), None);
        lanes.finished("x");
        assert_eq!(lanes.start_next(9), Some(2));
        lanes.prepared();
        lanes.finished("x");
        lanes.finished("y");
        assert_eq!(lanes.start_next(9), Some(4));
        lanes.finished("x");
        assert_eq!((lanes.lanes.len(), lanes.ready.len()), (0, 0));
    }

    #[test]
    fn the_limit_holds() {
        let mut lanes = Lanes::default();
        for seq in 0..5 {
            lanes.push(&format!("l{seq}"), &account("1"), seq);
        }
        assert_eq!((lanes.start_next(2), lanes.start_next(2), lanes.start_next(2)), (Some(0), Some(1), None));
        lanes.prepared();
        assert_eq!(lanes.start_next(2), Some(2), "a conversation that waits for its agent holds up no other");
        assert_eq!(lanes.start_next(2), None);
    }

    #[test]
    fn what_is_put_off_holds_up_its_own_lane_and_takes_no_place() {
        let mut lanes = Lanes::default();
        for (lane, seq) in [("x", 1), ("x", 2), ("y", 3)] {
            lanes.push(lane, &account("1"), seq);
        }
        assert_eq!(lanes.start_next(1), Some(1));
        lanes.put_off("x", 1, 500);
        assert_eq!((lanes.start_next(1), lanes.next_due_ms()), (Some(3), Some(500)), "others go on");
        lanes.offer_due(499);
        assert_eq!(lanes.start_next(9), None);
        lanes.push("x", &account("1"), 4);
        lanes.hold(&account("1"));
        lanes.offer_due(500);
        assert_eq!((lanes.start_next(9), lanes.next_due_ms()), (None, None), "it is held besides");
        lanes.release(&account("1"));
        assert_eq!((lanes.start_next(9), lanes.start_next(9)), (Some(1), None), "in its order");
        lanes.finished("x");
        assert_eq!(lanes.start_next(9), Some(2));
    }

    #[test]
    fn held_accounts_wait_and_others_do_not() {
        let mut lanes = Lanes::default();
        lanes.hold(&account("1"));
        lanes.push("x", &account("1"), 1);
        lanes.push("y", &account("2"), 2);
        lanes.push("x", &account("1"), 3);
        assert_eq!(lanes.start_next(9), Some(2));
        assert_eq!(lanes.start_next(9), None);
        lanes.release(&account("1"));
        assert_eq!(lanes.start_next(9), Some(1));
        lanes.finished("x");
        assert_eq!(lanes.start_next(9), Some(3));
    }

    #[test]
    fn a_hold_that_ends_late_takes_nothing_from_the_next() {
        let mut lanes = Lanes::default();
        lanes.hold(&account("1"));
        lanes.push("x", &account("1"), 1);
        lanes.hold(&account("1"));
        lanes.release(&account("1"));
        assert_eq!(lanes.start_next(9), None);
        lanes.release(&account("1"));
        lanes.release(&account("1"));
        assert_eq!(lanes.start_next(9), Some(1));
        assert!(lanes.held.is_empty());
    }
}
