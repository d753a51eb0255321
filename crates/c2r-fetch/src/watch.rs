use std::{path::Path, time::Duration};

/// What happens during a download that a person may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// This many bytes are there, or were read.
    Progress(u64),
    /// An unfinished file is taken up.
    Resuming {
        /// Its length.
        bytes: u64,
        /// Where it is.
        part: &'a Path,
    },
    /// What an earlier download rejected is deleted.
    RemovingRejected(&'a Path),
    /// What was there before and what came now are not one file: it is fetched whole.
    StartingOver,
    /// A try failed, and there will be another.
    Retrying {
        /// Why it failed.
        reason: &'a str,
        /// Number of the next try, from 2.
        attempt: u32,
        /// Most tries in a row.
        tries: u32,
        /// Time until then.
        wait: Duration,
    },
}

/// How a caller follows a download and ends it.
pub struct Watch<'a> {
    /// Whether to stop; asked often, from two threads.
    pub interrupted: &'a (dyn Fn() -> bool + Sync),
    /// Receives what happens.
    pub on_event: &'a mut dyn FnMut(Event<'_>),
}
