//! A real Slurm on one node, started on loopback in a temporary folder, as root, and stopped by its pid files.

use std::{
    env, fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Checkout, N_COMMANDS, ended};

struct Cluster {
    folder: tempfile::TempDir,
}

fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn first_line(command: &mut Command) -> String {
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not come up");
        thread::sleep(Duration::from_millis(100));
    }
}

impl Cluster {
    /// `None`, loudly, where there is no Slurm to start.
    #[expect(clippy::print_stderr, reason = "a test that is left out says so")]
    fn start() -> Option<Self> {
        let missing: Vec<&str> = ["munged", "slurmctld", "slurmd", "sbatch", "squeue"]
            .into_iter()
            .filter(|name| program(name).is_none())
            .collect();
        let is_root = first_line(Command::new("id").arg("-u")) == "0";
        if !missing.is_empty() || !is_root {
            let reason = if is_root { format!("no {}", missing.join(", ")) } else { "not root".to_owned() };
            let text =
                format!("SKIPPED: a real Slurm cannot be started here ({reason}); apt-get install slurm-wlm munge");
            assert!(env::var_os("C2R_TEST_STRICT").is_none(), "{text}");
            eprintln!("{text}");
            return None;
        }
        let cluster = Self { folder: tempfile::tempdir().unwrap() };
        let path = |name: &str| cluster.folder.path().join(name);
        let mut key = vec![0; 1024];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut key).unwrap();
        fs::write(path("munge.key"), key).unwrap();
        fs::set_permissions(path("munge.key"), fs::Permissions::from_mode(0o400)).unwrap();
        let mut munged = Command::new(program("munged").unwrap());
        for (option, file) in [
            ("key-file", "munge.key"),
            ("socket", "munge.socket"),
            ("pid-file", "munged.pid"),
            ("log-file", "munged.log"),
            ("seed-file", "munge.seed"),
        ] {
            munged.arg(format!("--{option}={}", path(file).display()));
        }
        assert!(munged.arg("--force").stderr(Stdio::null()).status().unwrap().success());

        // Held until both are known, so that they differ.
        let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let [control, node] = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());
        drop(listeners);
        let host = first_line(&mut Command::new("hostname"));
        fs::create_dir_all(path("state")).unwrap();
        fs::create_dir_all(path("spool")).unwrap();
        let at = cluster.folder.path().display();
        let config = format!(
            "ClusterName=c2r\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={control}\nSlurmdPort={node}\n\
             SlurmUser=root\nSlurmdUser=root\nAuthType=auth/munge\nAuthInfo=socket={at}/munge.socket\n\
             CryptoType=crypto/munge\nMpiDefault=none\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nReturnToService=2\n\
             StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool\n\
             SlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.pid\n\
             SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd.log\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs=1 RealMemory=100 State=UNKNOWN\n\
             PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4\n"
        );
        fs::write(cluster.config(), config).unwrap();
        for daemon in ["slurmctld", "slurmd"] {
            let mut command = Command::new(program(daemon).unwrap());
            let status = command.env("SLURM_CONF", cluster.config()).stderr(Stdio::null()).status().unwrap();
            assert!(status.success(), "{}", fs::read_to_string(path(&format!("{daemon}.log"))).unwrap_or_default());
            wait_for(daemon, || path(&format!("{daemon}.pid")).is_file());
        }
        let state = || {
            let mut sinfo = Command::new("sinfo");
            first_line(sinfo.args(["--noheader", "--format=%T"]).env("SLURM_CONF", cluster.config()))
        };
        wait_for("the node", || state() == "idle");
        Some(cluster)
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("slurm.conf")
    }
}

impl Drop for Cluster {
    /// Stops exactly what it started.
    fn drop(&mut self) {
        for daemon in ["slurmd", "slurmctld", "munged"] {
            let file = self.folder.path().join(daemon).with_extension("pid");
            let Ok(text) = fs::read_to_string(&file) else { continue };
            let pid = text.trim();
            let is_there = || Path::new("/proc").join(pid).is_dir();
            let kill = |signal: &str| drop(Command::new("kill").args([signal, pid]).stderr(Stdio::null()).status());
            kill("-TERM");
            let start = Instant::now();
            while is_there() && start.elapsed() < Duration::from_secs(10) {
                thread::sleep(Duration::from_millis(50));
            }
            if is_there() {
                kill("-KILL");
            }
        }
    }
}

#[test]
fn a_job_array_fills_the_grid_and_failures_come_back_with_their_logs() {
    let Some(cluster) = Cluster::start() else { return };
    let checkout = Checkout::new();
    checkout.mark("broken");
    let array = |more: &[&str]| {
        let mut command = checkout.reproduce(&["--launcher", "slurm", "--sbatch", "--partition=main --time=5"]);
        let output = command.args(more).env("SLURM_CONF", cluster.config()).output().unwrap();
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        let (code, said) = ended(&output);
        (code, said, table)
    };

    let (code, said, table) = array(&[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("submitted array") && said.contains("with 6 tasks"), "{said}");
    assert!(said.contains("seed1 distill failed: exit status: 3"), "{said}");
    assert!(said.contains("error: cannot read data_batch_1.bin"), "the end of its log: {said}");
    assert!(said.contains("2 commands failed, so 8 that need their results did not run"), "{said}");
    assert_eq!(table, "the table\n", "of what is finished");
    assert_eq!(checkout.n_finished(), 20);
    assert_eq!(checkout.calls().len(), 22);

    // Mended, only what failed is submitted again, in two tasks of four sets each.
    fs::remove_file(checkout.path("broken")).unwrap();
    let (code, said, _) = array(&["--tasks", "4"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("with 2 tasks") && said.contains("30 commands are finished, 20 of them before this run"),
        "{said}"
    );
    assert_eq!(checkout.n_finished(), N_COMMANDS);
    assert_eq!(checkout.calls().len(), 22 + 10);

    // What Slurm refuses is said in its words.
    let (code, said, _) = array(&["--seeds", "7", "--sbatch", "--partition=nowhere"]);
    assert!(code == Some(2) && said.contains("sbatch refused the array") && said.contains("partition"), "{said}");
    let (code, said, _) = array(&["--force", "--sbatch", "--partition=nowhere"]);
    assert!(code == Some(2) && said.contains("sbatch refused the array"), "{said}");
    assert_eq!(checkout.n_finished(), N_COMMANDS, "nothing is discarded for an array that is refused");

    // The whole grid, once more.
    let (code, said, table) = array(&["--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("30 commands are finished") && !said.contains("before this run"), "{said}");
    assert_eq!((checkout.n_finished(), table.as_str()), (N_COMMANDS, "the table\n"));
    assert_eq!(checkout.calls().len(), 22 + 10 + N_COMMANDS);
}

#[test]
fn without_slurm_it_says_so() {
    let checkout = Checkout::new();
    let empty = tempfile::tempdir().unwrap();
    let output = checkout.reproduce(&["--launcher", "slurm"]).env("PATH", empty.path()).output().unwrap();
    let (code, said) = ended(&output);
    assert!(code == Some(2) && said.contains("`sbatch` is not installed here"), "{said}");
    let (code, said) = ended(&checkout.reproduce(&["--sbatch", "--time=5"]).output().unwrap());
    assert!(code == Some(2) && said.contains("--sbatch is for --launcher slurm"), "{said}");
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert_eq!((code, checkout.n_finished()), (Some(0), N_COMMANDS), "{said}");
    let forced = checkout.reproduce(&["--launcher", "slurm", "--force"]).env("PATH", empty.path()).output().unwrap();
    let (code, said) = ended(&forced);
    assert!(code == Some(2) && said.contains("`sbatch` is not installed here"), "{said}");
    assert_eq!(checkout.n_finished(), N_COMMANDS, "nothing is discarded without Slurm");
}
