//! An agent's process as the supervisor sees it: what is started, and who talks to it. From the
//! handshake on the connection is there for turns; when it breaks, the process is ended and started
//! again. Runs no turn.

use super::agent::{AcpAgent, Links};
use super::hub::Hub;
use super::link::{Link, told};
use super::wire::{self, Traffic};
use crate::agent::status::announce;
use crate::bus::Bus;
use crate::keeper::{Killer, Process, SpawnSpec};
use crate::panics::finally;
use crate::stderr::log_errors;
use crate::supervisor::{BoxFuture, ChildStatus, NotReady, Program, after_exit};
use agent_client_protocol::schema::ProtocolVersion;
use agent_client_protocol::v1::ConnectionTo;
use agent_client_protocol::v1::schema::{ClientCapabilities, Implementation, InitializeRequest, RequestPermissionRequest};
use agent_client_protocol::{Agent, Channel, Client, Error, UntypedMessage, is_incoming_transport_closed};
use nexus_core::ids::ChildId;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a new process has for its handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);
/// How long what a process still has to say is read after it took no more, or after its end; and how long
/// one that closed a pipe has to end by itself.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct AcpProgram {
    /// Weak: the agent owns the child that owns this.
    agent: Weak<AcpAgent>,
    /// Its process may end after it.
    name: String,
    bus: Bus,
}

impl AcpProgram {
    pub(super) fn new(agent: &Arc<AcpAgent>) -> Self {
        Self { agent: Arc::downgrade(agent), name: agent.name().to_owned(), bus: agent.bus().clone() }
    }

    async fn spec(&self) -> Result<SpawnSpec, NotReady> {
        let agent = self.agent.upgrade().ok_or_else(|| "nobody can run the agent any more".to_owned())?;
        Ok(agent.spec())
    }

    fn talker(&self, process: &Process) -> Option<Talker> {
        let agent = self.agent.upgrade()?;
        Some(Talker {
            name: agent.name().to_owned(),
            id: agent.child_id().clone(),
            pid: process.pid,
            killer: process.killer(),
            links: agent.links().clone(),
        })
    }
}

impl Program for AcpProgram {
    fn prepare(&self) -> BoxFuture<'_, Result<SpawnSpec, NotReady>> {
        Box::pin(self.spec())
    }

    fn attach(&self, process: &mut Process, exited: CancellationToken) -> JoinHandle<()> {
        let (stdin, stdout, errors) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let talker = self.talker(process);
        crate::watch::helper("acp.reader", async move {
            let (Some(stdin), Some(stdout), Some(errors), Some(talker)) = (stdin, stdout, errors, talker) else { return };
            let logged = log_errors(talker.id.clone(), errors, exited.clone());
            tokio::join!(talker.serve(stdin, stdout, exited), logged);
        })
    }

    fn changed(&self, status: &ChildStatus) {
        announce(&self.bus, &self.name, None, status);
    }
}

/// What is needed to talk to one process. Doesn't keep the agent, whose end is the process's.
struct Talker {
    name: String,
    id: ChildId,
    pid: u32,
    killer: Killer,
    links: Arc<Links>,
}

/// Why a connection is over.
enum Over {
    /// A pipe is closed: mostly the process is about to end by itself.
    Closed(String),
    /// The process isn't listened to any more.
    Broken(String),
}

impl Talker {
    /// Talks until the connection is over, and ends the process if that didn't end by itself.
    async fn serve(&self, stdin: pipe::Sender, stdout: pipe::Receiver, exited: CancellationToken) {
        // Only if this breaks off there is a link left then.
        let _gone = finally(|| {
            if let Some(link) = self.links.send_replace(None) {
                link.kill("the connection to it broke off");
            }
        });
        let over = tokio::select! {
            over = self.talk(stdin, stdout) => over,
            // A pipe may still be open in the hands of a stranger.
            () = after_exit(&exited, LAST_WORDS_LIMIT) => Over::Closed("its process ended".to_owned()),
        };
        let (reason, patience) = match over {
            Over::Closed(reason) => (reason, LAST_WORDS_LIMIT),
            Over::Broken(reason) => {
                self.killer.give_up(&reason);
                (reason, Duration::ZERO)
            }
        };
        if let Some(link) = self.links.send_replace(None) {
            link.kill(&reason);
        }
        tracing::debug!(target: "nexus::agent", agent = self.name, pid = self.pid, reason, "the connection to an ACP agent is over");
        if tokio::time::timeout(patience, exited.cancelled()).await.is_err() {
            self.killer.kill(&reason);
        }
    }

    /// The connection from its first byte; why it is over.
    async fn talk(&self, stdin: pipe::Sender, stdout: pipe::Receiver) -> Over {
        let (ours, theirs) = Channel::duplex();
        let (outgoing, incoming) = ours.into_parts();
        let (hub, traffic) = (Arc::new(Hub::default()), Traffic::default());
        let (give, taken) = oneshot::channel();
        let connected = connect(theirs, hub.clone(), give);
        let read = async {
            // At the end of the output the crate is told by the end of what it is given, and the rest follows.
            match wire::read(stdout, &self.name, &hub, &traffic, move |frame| incoming.unbounded_send(frame).is_ok()).await {
                Ok(()) => std::future::pending().await,
                Err(reason) => Over::Broken(reason),
            }
        };
        let written = async {
            let reason = wire::write(stdin, outgoing, &traffic).await.err().unwrap_or_else(|| "nothing is said to it any more".to_owned());
            tokio::time::sleep(LAST_WORDS_LIMIT).await;
            Over::Closed(reason)
        };
        tokio::select! {
            result = connected => Over::Closed(result.err().map_or_else(|| "the connection to it ended".to_owned(), |error| told(&error))),
            over = read => over,
            over = written => over,
            over = self.hold(taken, hub.clone()) => over,
        }
    }

    /// The handshake, and then the connection for as long as it lasts; why it is over.
    async fn hold(&self, taken: oneshot::Receiver<ConnectionTo<Agent>>, hub: Arc<Hub>) -> Over {
        let Ok(connection) = taken.await else { return Over::Broken("the connection to it did not begin".to_owned()) };
        let asked = connection.send_request(hello()).block_task();
        let hello = match tokio::time::timeout(HANDSHAKE_LIMIT, asked).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(error)) if is_incoming_transport_closed(&error) => {
                return Over::Closed("it closed its stdout before its handshake".to_owned());
            }
            Ok(Err(error)) => return Over::Broken(format!("it refused `initialize`: {}", told(&error))),
            Err(_) => return Over::Broken(format!("it did not answer `initialize` within {} s", HANDSHAKE_LIMIT.as_secs())),
        };
        if hello.protocol_version != ProtocolVersion::V1 {
            return Over::Broken(format!("it speaks version {} of the protocol, and not 1", hello.protocol_version));
        }
        tracing::info!(target: "nexus::agent", agent = self.name, pid = self.pid, "ACP agent connected");
        let link = Arc::new(Link::new(self.pid, connection.clone(), hub, hello.agent_capabilities));
        self.links.send_replace(Some(link.clone()));
        tokio::select! {
            () = link.died() => Over::Broken(link.reason()),
            () = connection.incoming_closed() => Over::Closed("it closed its stdout".to_owned()),
        }
    }
}

/// What we are: neither files nor terminals are offered.
fn hello() -> InitializeRequest {
    InitializeRequest::new(ProtocolVersion::V1)
        .client_capabilities(ClientCapabilities::new())
        .client_info(Implementation::new("nexus", env!("CARGO_PKG_VERSION")))
}

/// Drives the protocol over `transport`, and hands the connection out. Ends with an error or never.
async fn connect(transport: Channel, hub: Arc<Hub>, give: oneshot::Sender<ConnectionTo<Agent>>) -> Result<(), Error> {
    Client
        .v1()
        .name("nexus")
        .on_receive_request(
            async move |request: RequestPermissionRequest, responder, _connection| {
                hub.ask(request, responder).await;
                Ok(())
            },
            agent_client_protocol::on_receive_request!(),
        )
        .on_receive_request(
            async move |_request: UntypedMessage, responder, _connection| responder.respond_with_error(Error::method_not_found()),
            agent_client_protocol::on_receive_request!(),
        )
        .connect_with(transport, async move |connection: ConnectionTo<Agent>| {
            give.send(connection).ok(); // nobody waits for it only when all of this is dropped
            std::future::pending::<Result<(), Error>>().await
        })
        .await
}
