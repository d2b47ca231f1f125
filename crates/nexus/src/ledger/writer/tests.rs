//! Groups, of which one command may be refused or panic, and files that vanish.
#![allow(clippy::unwrap_used)]

use super::*;

/// Puts a number. The number 13 first puts another one, and is then refused; at 17 it panics then.
#[derive(Debug)]
struct Put(i64);

impl Command for Put {
    type Reply = usize;
    const LEDGER: Ledger = Ledger::Bus;

    fn apply(&self, connection: &Connection) -> rusqlite::Result<usize> {
        if [13, 17].contains(&self.0) {
            connection.execute("INSERT INTO numbers VALUES (1300)", [])?;
        }
        assert_ne!(self.0, 17, "a defect");
        connection.execute("INSERT INTO numbers VALUES (?1)", [self.0])
    }
    fn bytes(&self) -> usize {
        1
    }
    fn rows(&self) -> usize {
        1
    }
    fn outdates(&self) -> bool {
        self.0 < 0
    }
    fn name(&self) -> &'static str {
        "Put"
    }
    const POINTS: &'static [[&'static str; 2]] = &[];
    fn points(&self) -> [&'static str; 2] {
        ["write.Append.before", "write.Append.after"]
    }
}

impl Write for Put {
    type Set = Put;
    type Reply = usize;

    fn into_command(self) -> Put {
        self
    }

    fn from_reply(reply: usize) -> Option<usize> {
        Some(reply)
    }
}

/// A writer on a file of its own.
fn thread() -> (Thread, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("numbers.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE numbers (n INTEGER NOT NULL CHECK (n <> 13)) STRICT").unwrap();
    let place = Place::of(path).unwrap();
    let (checkpoint, _) = crate::ledger::Checkpoints::start(place.clone(), Ledger::Bus).unwrap();
    let reopen = Box::new(|| Err(OpenError::Moved("nothing is opened anew here".to_owned())));
    (Thread { connection, reopen, stats: Arc::default(), checkpoint, place }, directory)
}

/// The answers to one group.
fn answers(thread: &mut Thread, numbers: &[i64]) -> Vec<Result<usize, WriteError>> {
    let room = Arc::new(Semaphore::new(numbers.len()));
    let (mut jobs, mut answers) = (Vec::new(), Vec::new());
    for &number in numbers {
        let (reply, answer) = oneshot::channel();
        jobs.push(Job { command: Put(number), reply, _bytes: room.clone().try_acquire_owned().unwrap() });
        answers.push(answer);
    }
    thread.run_group(jobs);
    answers.iter_mut().map(|answer| answer.try_recv().unwrap()).collect()
}

fn kept(thread: &Thread) -> Vec<i64> {
    let mut query = thread.connection.prepare("SELECT n FROM numbers ORDER BY n").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

/// Runs one group; what each command was told, and what is in the table.
fn group(thread: &mut Thread, numbers: &[i64]) -> (Vec<bool>, Vec<i64>) {
    let told = answers(thread, numbers).into_iter().map(|answer| match answer {
        Ok(rows) => rows == 1,
        Err(WriteError::Refused { command, .. }) => command != "Put",
        Err(error) => panic!("{error}"),
    });
    (told.collect(), kept(thread))
}

#[test]
fn a_refused_command_fails_alone_and_leaves_no_trace() {
    let (mut thread, _directory) = thread();
    let (told, kept) = group(&mut thread, &[1, 2, 13, 3, 13, 4]);
    assert_eq!(told, [true, true, false, true, false, true]);
    assert_eq!(kept, [1, 2, 3, 4]);
    let (told, kept) = group(&mut thread, &[13]);
    assert_eq!((told, kept), (vec![false], vec![1, 2, 3, 4]));
    let (told, kept) = group(&mut thread, &[5, 6]);
    assert_eq!((told, kept), (vec![true, true], vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(thread.stats.commits.load(Ordering::Relaxed), 3);
}

#[test]
fn a_command_that_panics_fails_alone_and_leaves_no_trace() {
    let (mut thread, _directory) = thread();
    let (told, kept) = group(&mut thread, &[1, 17, 2, 13, 17, 3]);
    assert_eq!(told, [true, false, true, false, false, true]);
    assert_eq!(kept, [1, 2, 3]);
    let alone = answers(&mut thread, &[17]).remove(0).unwrap_err().to_string();
    assert!(alone.contains("refused `Put`") && alone.contains("a defect"), "{alone}");
    let (told, kept) = group(&mut thread, &[4]);
    assert_eq!((told, kept), (vec![true], vec![1, 2, 3, 4]));
    assert!(!thread.stats.failing.load(Ordering::Relaxed), "the file is well");
}

#[test]
fn what_is_kept_of_the_files_answers_is_outdated_whatever_came_of_the_command() {
    let (mut thread, directory) = thread();
    let mut version_after = |numbers: &[i64]| {
        drop(answers(&mut thread, numbers));
        thread.stats.version()
    };
    assert_eq!((version_after(&[1, 2]), version_after(&[3, -4]), version_after(&[5])), (0, 1, 1));
    assert_eq!(version_after(&[-6, 13]), 2, "another of its group is refused");
    std::fs::rename(directory.path().join("numbers.db"), directory.path().join("aside")).unwrap();
    assert!(thread.place.look().is_some());
    assert!(answers(&mut thread, &[-7]).remove(0).is_err());
    assert_eq!(thread.stats.version(), 3, "nobody knows what is on disk");
}

#[tokio::test]
async fn whom_nobody_answers_repeats_while_the_thread_lives() {
    let (jobs, mut inbox) = mpsc::channel::<Job<Put>>(1);
    let (bytes, stats, last_try) = (Arc::new(Semaphore::new(QUEUE_BYTES_MAX)), Arc::default(), CancellationToken::new());
    let writer = Writer { jobs, bytes, stats, last_try };
    let (told, ()) = tokio::join!(writer.write(Put(1)), async { drop(inbox.recv().await) });
    assert!(matches!(told, Err(WriteError::Unknown { .. })), "{told:?}");
    drop(inbox);
    let told = writer.write(Put(1)).await;
    assert!(matches!(told, Err(WriteError::Closed { .. })), "{told:?}");
}

#[test]
fn a_file_that_vanished_is_not_written_until_it_is_back() {
    let (mut thread, directory) = thread();
    let aside = directory.path().join("aside");
    std::fs::rename(thread.place.path(), &aside).unwrap();
    assert!(thread.place.look().is_some());
    let error = answers(&mut thread, &[1]).remove(0).unwrap_err();
    assert!(matches!(&error, WriteError::Unknown { message, .. } if message.contains("is gone")), "{error}");
    assert!(thread.stats.trouble().is_some_and(|trouble| trouble.contains("is gone")));
    assert!(kept(&thread).is_empty());
    std::fs::rename(&aside, thread.place.path()).unwrap();
    assert_eq!(thread.place.look(), None);
    let (told, kept) = group(&mut thread, &[1]);
    assert_eq!((told, kept), (vec![true], vec![1]));
    assert_eq!(thread.stats.trouble(), None);
}
