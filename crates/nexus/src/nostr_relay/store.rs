//! The thread that has the database to itself. Whoever wants something kept or found asks it over a bounded
//! line and is answered on its own; events that wait share one commit. What is stored how, `rows.rs` says.

use super::event::Event;
use super::filter::Filter;
use super::find::Found;
use super::limits::{BATCH_MAX, STORE_QUEUE_MAX};
use super::rows::{Kept, Rows};
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc, oneshot};

/// A new event, for whoever listens.
#[derive(Debug, Clone)]
pub(super) struct Live {
    /// Its number, if it was stored.
    pub(super) seq: Option<i64>,
    pub(super) event: Arc<Event>,
}

#[derive(Debug)]
pub(super) enum Ask {
    Keep {
        event: Arc<Event>,
        answer: mpsc::Sender<Answer>,
    },
    Find {
        subscription: String,
        filters: Arc<[Filter]>,
        answer: mpsc::Sender<Answer>,
    },
    /// Remove what is expired.
    Sweep,
}

/// Errors are texts for the client.
#[derive(Debug)]
pub(super) enum Answer {
    Kept {
        id: String,
        kept: Result<Kept, String>,
    },
    Found {
        subscription: String,
        /// With the number of the last event that was looked at.
        found: Result<(Found, i64), String>,
    },
}

/// Starts the thread; it ends when the last sender of asks is gone, and says so by dropping what `oneshot` waits for.
///
/// # Errors
/// When no thread can be started.
pub(super) fn start(rows: Rows, live: broadcast::Sender<Live>) -> std::io::Result<(mpsc::Sender<Ask>, oneshot::Receiver<()>)> {
    let (sender, asks) = mpsc::channel(STORE_QUEUE_MAX);
    let (ending, ended) = oneshot::channel();
    std::thread::Builder::new().name("relay-store".to_owned()).spawn(move || {
        serve(rows, asks, &live);
        drop(ending);
    })?;
    Ok((sender, ended))
}

fn serve(mut rows: Rows, mut asks: mpsc::Receiver<Ask>, live: &broadcast::Sender<Live>) {
    let mut next = None;
    while let Some(ask) = next.take().or_else(|| asks.blocking_recv()) {
        match ask {
            Ask::Keep { event, answer } => {
                let mut batch = vec![(event, answer)];
                while batch.len() < BATCH_MAX {
                    match asks.try_recv() {
                        Ok(Ask::Keep { event, answer }) => batch.push((event, answer)),
                        Ok(other @ (Ask::Find { .. } | Ask::Sweep)) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                keep(&mut rows, batch, live);
            }
            Ask::Find { subscription, filters, answer } => {
                let found = rows.find(&filters, now_s()).map_err(|error| format!("error: {error}"));
                tell(&answer, Answer::Found { subscription, found });
            }
            Ask::Sweep => {
                if let Err(error) = rows.sweep(now_s()) {
                    super::say(&format!("failed to remove what is expired: {error}"));
                }
            }
        }
    }
}

fn keep(rows: &mut Rows, batch: Vec<(Arc<Event>, mpsc::Sender<Answer>)>, live: &broadcast::Sender<Live>) {
    let kept: Vec<Result<Kept, String>> = match rows.keep(batch.iter().map(|(event, _)| event.as_ref())) {
        Ok(kept) => kept.into_iter().map(Ok).collect(),
        Err(error) => {
            super::say(&format!("failed to keep {} events: {error}", batch.len()));
            vec![Err(format!("error: {error}")); batch.len()]
        }
    };
    for ((event, answer), kept) in batch.into_iter().zip(kept) {
        tell(&answer, Answer::Kept { id: event.id.clone(), kept: kept.clone() });
        if let Ok(Kept::New(seq)) = kept {
            // Nobody may be listening.
            live.send(Live { seq: Some(seq), event }).ok();
        }
    }
}

/// The line has room for all that its connection may have asked; a connection that is gone needs no answer.
fn tell(answer: &mpsc::Sender<Answer>, what: Answer) {
    answer.try_send(what).ok();
}

fn now_s() -> i64 {
    crate::clock::wall_ms() / 1000
}
