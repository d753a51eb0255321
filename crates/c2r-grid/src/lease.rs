//! Who works on a job: one process at a time, also among machines that share a folder.
//!
//! A job is claimed by a lock and a lease. The **lock** (`.job.lock`, a [`c2r_run::Lock`]) is released by the kernel however
//! its holder ends, `kill -9` included, so on one machine a dead process never blocks a job. A lock alone is not enough:
//! file systems over a network may keep locks to each machine, or have none. The **lease** is a file `.lease-N` that only
//! one can create, whose modification time its holder moves on every [`BEAT`]; one that has not moved for [`EXPIRES`] is
//! taken over by creating `.lease-(N+1)`. Ages are differences of times that the file server gave, so clocks of machines
//! need not agree.
//!
//! A machine that was cut off for longer than that may find that it was overtaken: its next beat notices, and its command is
//! killed. Should two commands overlap for a moment, both write the same bytes, each file whole (the job's name decides
//! its result), so what is lost is time.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use c2r_files::{FileError, remove_if_present};
use c2r_run::Lock;

/// How often a holder shows that it is alive.
const BEAT: Duration = Duration::from_secs(20);

/// A lease of another machine that has not moved for this long is nobody's: many beats, so that a busy file server or a
/// stopped virtual machine does not lose its work at once.
const EXPIRES: Duration = Duration::from_secs(300);

const LOCK: &str = ".job.lock";
const PREFIX: &str = ".lease-";

/// A claimed job; given back when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    path: PathBuf,
    /// What the file says while the lease is ours.
    token: String,
    lost: Arc<AtomicBool>,
    /// Dropped to end the beats.
    stop: Option<mpsc::Sender<()>>,
    beats: Option<thread::JoinHandle<()>>,
    lock: Option<Lock>,
}

/// A name for this process that no other has, on any machine.
pub(crate) fn token() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}-{}", boot(), std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// This start of this machine: containers on it share it, and so its locks. Empty where the system does not say.
fn boot() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().replace('-', "")
}

/// The machine's name, for people.
pub(crate) fn host_name() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()));
    text.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}

impl Lease {
    /// Claims the job in `folder`, which is made if need be; `None` if another process works on it.
    pub(crate) fn claim(folder: &Path) -> anyhow::Result<Option<Self>> {
        Self::claim_with(folder, BEAT, EXPIRES)
    }

    fn claim_with(folder: &Path, beat: Duration, expires: Duration) -> anyhow::Result<Option<Self>> {
        let lock = match Lock::acquire(&folder.join(LOCK)) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return Ok(None),
            // A file system without locks: the lease alone decides.
            Err(FileError::Io { action: "lock", .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let old = leases(folder)?;
        if let Some((_, newest)) = old.last()
            && is_held(newest, lock.is_some(), folder, expires)?
        {
            return Ok(None);
        }
        let number = old.last().map_or(1, |(number, _)| number + 1);
        let path = folder.join(format!("{PREFIX}{number:06}"));
        let token = token();
        let written = match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            // Without its text, it would keep everyone from the job until it expires.
            created => created
                .and_then(|mut file| file.write_all(token.as_bytes()).inspect_err(|_| drop(fs::remove_file(&path)))),
        };
        written.with_context(|| format!("cannot write {}", path.display()))?;
        // Those before it are dead.
        old.iter().try_for_each(|(_, path)| remove_if_present(path))?;
        let lost = Arc::new(AtomicBool::new(false));
        let (stop, stopped) = mpsc::channel::<()>();
        let beats = {
            let (path, token, folder, lost) = (path.clone(), token.clone(), folder.to_owned(), lost.clone());
            thread::spawn(move || {
                while stopped.recv_timeout(beat) == Err(mpsc::RecvTimeoutError::Timeout) {
                    if !beat_once(&path, &token, &folder, number) {
                        lost.store(true, Ordering::SeqCst);
                        return;
                    }
                }
            })
        };
        Ok(Some(Self { path, token, lost, stop: Some(stop), beats: Some(beats), lock }))
    }

    /// Standard input for the job's command: empty, and the lock itself, which lasts as long as one of us holds it. So a
    /// command that outlives a killed `cargo xtask reproduce` is not started a second time while it runs.
    pub(crate) fn stdin(&self) -> anyhow::Result<Stdio> {
        self.lock.as_ref().map_or_else(|| Ok(Stdio::null()), |lock| lock.share().context("cannot share a lock"))
    }

    /// Whether another machine took the job over, because this one did not show that it is alive.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(beats) = self.beats.take() {
            let _ = beats.join();
        }
        // One who overtook us, was killed and was overtaken in turn may have left the same number to another.
        if fs::read_to_string(&self.path).is_ok_and(|token| token == self.token) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The leases in a folder with their numbers, the newest last.
fn leases(folder: &Path) -> anyhow::Result<Vec<(u64, PathBuf)>> {
    let mut leases = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            leases.push((number, path));
        }
    }
    leases.sort();
    Ok(leases)
}

/// Whether the holder of a lease is alive. One of this machine would hold the lock that we have.
fn is_held(lease: &Path, locked: bool, folder: &Path, expires: Duration) -> anyhow::Result<bool> {
    let holder = fs::read_to_string(lease).unwrap_or_default();
    let here = boot();
    if locked && !here.is_empty() && holder.starts_with(&here) {
        return Ok(false);
    }
    // Just now, by the clock that the lease's time is from.
    let probe = folder.join(format!(".now-{}", token()));
    let now = fs::write(&probe, "").and_then(|()| fs::metadata(&probe)).and_then(|data| data.modified());
    let _ = fs::remove_file(&probe);
    let now = now.with_context(|| format!("cannot write {}", probe.display()))?;
    let Ok(moved) = fs::metadata(lease).and_then(|data| data.modified()) else {
        // Given back this moment.
        return Ok(false);
    };
    Ok(now.duration_since(moved).unwrap_or_default() < expires)
}

/// Moves the time of our lease; `false` if it is not ours any more.
fn beat_once(lease: &Path, token: &str, folder: &Path, number: u64) -> bool {
    match fs::read_to_string(lease) {
        Ok(text) if text == token => {}
        Ok(_) => return false,
        Err(error) => return error.kind() != io::ErrorKind::NotFound,
    }
    if leases(folder).is_ok_and(|leases| leases.last().is_some_and(|(newest, _)| *newest > number)) {
        return false;
    }
    // Writing gives the file the server's time. What cannot be written is tried again at the next beat.
    let _ = File::options().write(true).open(lease).and_then(|mut file| file.write_all(token.as_bytes()));
    true
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != LOCK)
            .collect();
        names.sort();
        names
    }

    #[test]
    fn one_at_a_time_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let job = folder.path().join("job");
        let lease = Lease::claim(&job).unwrap().unwrap();
        assert!(Lease::claim(&job).unwrap().is_none());
        assert_eq!(files(&job), [".lease-000001"]);
        drop(lease);
        assert!(files(&job).is_empty());
        let lease = Lease::claim(&job).unwrap().unwrap();
        fs::write(&lease.path, "another-boot-7-0").unwrap();
        drop(lease);
        assert_eq!(files(&job), [".lease-000001"], "what is another's stays");
    }

    /// Locks that every machine keeps to itself: only the lease says that another one works here.
    #[test]
    fn another_machine_holds_a_job_until_it_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let job = folder.path();
        fs::write(job.join(".lease-000004"), "another-boot-7-0").unwrap();
        assert!(Lease::claim_with(job, LONG, LONG).unwrap().is_none());
        assert_eq!(files(job), [".lease-000004"]);

        thread::sleep(Duration::from_millis(60));
        let lease = Lease::claim_with(job, LONG, Duration::from_millis(50)).unwrap().unwrap();
        assert_eq!(files(job), [".lease-000005"], "taken over");
        drop(lease);
    }

    /// `kill -9` leaves the lease and gives the lock back.
    #[test]
    fn a_dead_process_of_this_machine_blocks_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let job = folder.path();
        let lease = Lease::claim_with(job, LONG, LONG).unwrap().unwrap();
        let left = fs::read(&lease.path).unwrap();
        drop(lease);
        fs::write(job.join(".lease-000001"), left).unwrap();
        soon_free(job);
    }

    /// A child that another test starts has our lock, too, until it executes its program.
    fn soon_free(job: &Path) {
        let begun = Instant::now();
        while Lease::claim_with(job, LONG, LONG).unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the dead process still has its lock");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_command_holds_the_lock_of_its_dead_parent() {
        let folder = tempfile::tempdir().unwrap();
        let job = folder.path();
        let lease = Lease::claim(job).unwrap().unwrap();
        let mut command = std::process::Command::new("sleep");
        let mut child = command.arg("60").stdin(lease.stdin().unwrap()).spawn().unwrap();
        drop(command);
        drop(lease);
        assert!(Lease::claim(job).unwrap().is_none(), "the command still works there");
        child.kill().unwrap();
        child.wait().unwrap();
        soon_free(job);
    }

    #[test]
    fn a_holder_beats_and_notices_that_it_was_overtaken() {
        let folder = tempfile::tempdir().unwrap();
        let job = folder.path();
        let beat = Duration::from_millis(5);
        let lease = Lease::claim_with(job, beat, LONG).unwrap().unwrap();
        let time = || fs::metadata(&lease.path).unwrap().modified().unwrap();
        let wait_for = |what: &dyn Fn() -> bool| {
            let start = Instant::now();
            while !what() {
                assert!(start.elapsed() < Duration::from_secs(20), "nothing happened");
                thread::sleep(Duration::from_millis(5));
            }
        };
        let first = time();
        wait_for(&|| time() > first);
        assert!(!lease.is_lost());
        fs::write(job.join(".lease-000002"), "another-boot-7-0").unwrap();
        wait_for(&|| lease.is_lost());
        drop(lease);
        assert!(files(job).contains(&".lease-000002".to_owned()), "the new holder's lease stays");
    }
}
