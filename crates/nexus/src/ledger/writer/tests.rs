//! Groups, of which one command may be refused.
#![allow(clippy::unwrap_used)]

use super::*;

/// Puts a number; the number 13 first puts another one, and is then refused.
#[derive(Debug)]
struct Put(i64);

impl Command for Put {
    type Reply = usize;
    const LEDGER: Ledger = Ledger::Bus;

    fn apply(&self, connection: &Connection) -> rusqlite::Result<usize> {
        if self.0 == 13 {
            connection.execute("INSERT INTO numbers VALUES (1300)", [])?;
        }
        connection.execute("INSERT INTO numbers VALUES (?1)", [self.0])
    }
    fn bytes(&self) -> usize {
        1
    }
    fn rows(&self) -> usize {
        1
    }
    fn name(&self) -> &'static str {
        "Put"
    }
    const POINTS: &'static [[&'static str; 2]] = &[];
    fn points(&self) -> [&'static str; 2] {
        ["write.Append.before", "write.Append.after"]
    }
}

fn thread() -> Thread {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch("CREATE TABLE numbers (n INTEGER NOT NULL CHECK (n <> 13)) STRICT").unwrap();
    let (checkpoint, _) = crate::ledger::Checkpoints::start("unused".into(), Ledger::Bus).unwrap();
    let reopen = Box::new(|| panic!("nothing is wrong with the file"));
    Thread { connection, reopen, stats: Arc::default(), checkpoint }
}

/// Runs one group; what each command was told, and what is in the table.
fn group(thread: &mut Thread, numbers: &[i64]) -> (Vec<bool>, Vec<i64>) {
    let room = Arc::new(Semaphore::new(numbers.len()));
    let (mut jobs, mut answers) = (Vec::new(), Vec::new());
    for &number in numbers {
        let (reply, answer) = oneshot::channel();
        jobs.push(Job { command: Put(number), reply, _bytes: room.clone().try_acquire_owned().unwrap() });
        answers.push(answer);
    }
    thread.run_group(jobs);
    let told = answers.iter_mut().map(|answer| match answer.try_recv().unwrap() {
        Ok(rows) => rows == 1,
        Err(WriteError::Refused { command, .. }) => command != "Put",
        Err(error) => panic!("{error}"),
    });
    let told = told.collect();
    let mut query = thread.connection.prepare("SELECT n FROM numbers ORDER BY n").unwrap();
    let kept = query.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap();
    (told, kept)
}

#[test]
fn a_refused_command_fails_alone_and_leaves_no_trace() {
    let mut thread = thread();
    let (told, kept) = group(&mut thread, &[1, 2, 13, 3, 13, 4]);
    assert_eq!(told, [true, true, false, true, false, true]);
    assert_eq!(kept, [1, 2, 3, 4]);
    let (told, kept) = group(&mut thread, &[13]);
    assert_eq!((told, kept), (vec![false], vec![1, 2, 3, 4]));
    let (told, kept) = group(&mut thread, &[5, 6]);
    assert_eq!((told, kept), (vec![true, true], vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(thread.stats.commits.load(Ordering::Relaxed), 3);
}
