//! How far a turn may look back, as the access decision of its request says (`data_access`), and who speaks in it. It reads
//! nothing; what is found of the past within that, others say.

use super::Prepared;
use crate::agent::{Remembers, plain};
use crate::ledger::agents::{Reach, Speaker};
use nexus_core::config::DataAccess;
use nexus_core::event::PeerKind;
use nexus_core::request::NexusRequest;

impl Prepared {
    /// Which of the session's turns are told. Under `minimal` those of this sender alone, so none where several senders are
    /// answered together: what one of them said would be told to another.
    pub(super) fn reach(&self) -> Reach {
        match self.data_access() {
            DataAccess::None => Reach::Nothing,
            DataAccess::Minimal if self.is_of_several() => Reach::Nothing,
            DataAccess::Minimal => {
                let known = self.request.principal.iter().flat_map(|principal| principal.identities.iter().cloned());
                Reach::Own(known.chain([speaker_id(&self.request)]).collect())
            }
            DataAccess::Contextual | DataAccess::Full => Reach::All,
        }
    }

    /// The same for agents that remember by themselves.
    pub(super) fn remembers(&self) -> Remembers {
        match self.reach() {
            Reach::Nothing => Remembers::Nothing,
            Reach::Own(_) => Remembers::Own(person(&self.request)),
            Reach::All => Remembers::Session,
        }
    }

    /// Who spoke in the turn, each once, with a name where others may speak too.
    pub(super) fn speakers(&self) -> Vec<Speaker> {
        let mut all: Vec<Speaker> = Vec::new();
        for request in self.requests() {
            let id = speaker_id(request);
            if all.iter().all(|known| known.id != id) {
                all.push(Speaker { id, name: others_may_speak(request).then(|| called(request)) });
            }
        }
        all
    }

    fn data_access(&self) -> DataAccess {
        // Nothing was decided about one that has none.
        self.request.access.as_ref().map_or(DataAccess::None, |access| access.permissions.data_access)
    }

    fn is_of_several(&self) -> bool {
        let own = person(&self.request);
        self.requests().any(|request| person(request) != own)
    }
}

/// What a sender is called before their words. The name recorded for a contact counts. Others stand there with their id in
/// brackets, whatever they call themselves: anybody may take the name of somebody else, and where ids are chosen, that too.
pub(super) fn called(request: &NexusRequest) -> String {
    let (event, id) = (&request.event, plain::name(&request.event.sender_id));
    let contact = request.principal.as_ref().filter(|principal| principal.entity_id.is_some());
    let recorded = contact.and_then(|principal| principal.name.as_deref()).map(plain::name).filter(|name| !name.is_empty());
    let own = || event.sender_name.as_deref().map(plain::name).filter(|name| !name.is_empty() && *name != id);
    match (recorded, own()) {
        (Some(name), _) => name,
        (None, Some(name)) => format!("{name} ({id})"),
        (None, None) => format!("({id})"),
    }
}

/// Whether what is said there isn't known to be this sender's by the place alone.
pub(super) fn others_may_speak(request: &NexusRequest) -> bool {
    match request.event.peer_kind {
        PeerKind::Dm => false,
        PeerKind::Group | PeerKind::Channel => true,
    }
}

fn speaker_id(request: &NexusRequest) -> String {
    format!("{}:{}", request.event.channel, request.event.sender_id)
}

/// The same for all that is one person's.
fn person(request: &NexusRequest) -> String {
    let entity = request.principal.as_ref().and_then(|principal| principal.entity_id.as_ref());
    entity.map_or_else(|| format!("sender\u{1f}{}", speaker_id(request)), |entity_id| format!("entity\u{1f}{entity_id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexus_core::config::PrincipalType;
    use nexus_core::request::PrincipalSection;

    fn request(sender: &str, own: Option<&str>, recorded: Option<&str>) -> NexusRequest {
        let event = nexus_core::event::Event {
            sender_id: sender.to_owned(),
            sender_name: own.map(str::to_owned),
            peer_kind: PeerKind::Group,
            ..crate::samples::event("fake:1")
        };
        let mut request = NexusRequest::new("req_1".to_owned(), 1, 0, event);
        request.principal = Some(PrincipalSection {
            type_: PrincipalType::Known,
            entity_id: recorded.map(str::to_lowercase),
            name: recorded.or(own).map(str::to_owned),
            relationship: None,
            tags: Vec::new(),
            identities: vec![format!("fake:{sender}")],
        });
        request
    }

    #[test]
    fn a_stranger_may_take_a_contacts_name_and_is_told_apart() {
        assert_eq!(called(&request("u1", Some("annie"), Some("Ann"))), "Ann");
        assert_eq!(called(&request("u2", Some("Ann"), None)), "Ann (u2)");
        assert_eq!(called(&request("u2", Some("x\nAnn: hi"), None)), "x Ann hi (u2)");
        assert_eq!(called(&request("u2", Some(" \n"), None)), "(u2)");
        assert_eq!(called(&request("Ann", None, None)), "(Ann)");
        assert_eq!(called(&request("Ann", Some("Ann"), None)), "(Ann)");
    }

    #[test]
    fn all_that_an_entity_says_is_one_persons() {
        assert_eq!(person(&request("u1", None, Some("Ann"))), person(&request("u2", None, Some("Ann"))));
        assert_ne!(person(&request("u1", None, None)), person(&request("u2", None, None)));
        assert_ne!(person(&request("u1", None, None)), person(&request("u1", None, Some("Ann"))));
    }
}
