//! What every long command needs, whatever it computes.
//!
//! **What it is:** [`Run`], a run with a lock, a record (`run.json`) and a log, which the same command resumes;
//! [`signals`], which turns Ctrl-C and SIGTERM into a request to save and stop; [`exit`], the exit codes; and [`terminal`],
//! lines and progress for people; [`arguments`], the command line; [`process`], programs that a command starts.
//!
//! **What it is not:** it depends on no stage, handles no tensors and links no libtorch. Only [`terminal`] prints.
//!
//! **Where to start:** [`Run::open`].
//!
//! ```
//! use c2r_run::{Environment, Place, Plan, Run, Status};
//!
//! let folder = tempfile::tempdir().unwrap();
//! let open = || {
//!     let config = serde_json::json!({"seed": 7});
//!     let plan = Plan { stage: "demo", config, results: [].into(), environment: Environment::default(), outputs: vec![], needed: &[], writes: &[] };
//!     Run::open(Place::folder(folder.path()), plan, false, || Ok(())).unwrap()
//! };
//! let (mut run, status) = open();
//! assert_eq!(status, Status::New);
//! run.finish(serde_json::json!({"loss": 0.5})).unwrap();
//! drop(run);
//! assert_eq!(open().1, Status::Finished);
//! ```

pub mod arguments;
pub mod exit;
mod lock;
mod log;
pub mod process;
mod record;
mod run;
pub mod signals;
pub mod terminal;

pub use lock::Lock;
pub use log::Log;
pub use record::{Environment, argv};
pub use run::{Place, Plan, Run, RunError, Status};
