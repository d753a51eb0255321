//! The archive of `dist`, made of the programs that are built, unpacked and used with next to nothing in the environment.

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
};

use super::{built_libtorch, ended, exists};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_archive_runs_where_there_is_no_rust() {
    let Some(libtorch) = built_libtorch() else { return };
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let archive = here.join("c2r.tar.xz");
    let dist = |program: &Path| {
        let mut command = Command::new(program);
        command.args(["dist", "--prebuilt", "--output"]).arg(&archive).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.output().unwrap()
    };
    let made = dist(Path::new(env!("CARGO_BIN_EXE_xtask")));
    assert_eq!((ended(&made).0, said(&made)), (Some(0), format!("{}\n", archive.display())), "{}", ended(&made).1);
    let megabytes = fs::metadata(&archive).unwrap().len() / 1_000_000;
    assert!((3..8).contains(&megabytes), "{megabytes} MB");

    let python = Command::new("python3").args(["-m", "tarfile", "-e"]).arg(&archive).arg(here).status().unwrap();
    assert!(python.success());
    let platform = format!("{}-{}", env::consts::ARCH, env::consts::OS);
    let unpacked = here.join(format!("c2r-{}-{platform}", env!("CARGO_PKG_VERSION")));
    let home = here.join("home");
    fs::create_dir(&home).unwrap();
    // Called from a folder that is not the archive's.
    let call = |name: &str, words: &[&str]| {
        let mut command = Command::new(unpacked.join(name));
        command.args(words).current_dir(here).env_clear();
        command.env("PATH", env::var_os("PATH").unwrap()).env("HOME", &home);
        command
    };
    let runs = |mut command: Command| {
        let output = command.output().unwrap();
        let (code, notes) = ended(&output);
        assert_eq!(code, Some(0), "{command:?}\n{notes}");
        (said(&output), notes)
    };

    // LIBTORCH is named once; from then on the link is enough.
    let mut doctor = call("c2r", &["doctor"]);
    doctor.env("LIBTORCH", &libtorch);
    assert!(runs(doctor).0.contains("libtorch   2.11.0"));
    assert_eq!(fs::read_link(unpacked.join(".libtorch")).unwrap(), libtorch);
    assert!(runs(call("c2r", &["doctor"])).0.contains("problems   none"));

    let part = "method=c2r,seed=0,protocol=natural,attack=pgd";
    let grid = ["reproduce", "headline", "--scale", "tiny", "--device", "cpu", "--only", part];
    let with = |more: &[&str]| call("xtask", &[&grid[..], more].concat());
    assert!(
        runs(with(&["--list"]))
            .0
            .contains("1 distillation, 1 training, 1 attack; 0 of 3 commands are finished; the rest")
    );
    let (table, notes) = runs(with(&[]));
    assert!(table.contains("| 10 | C²R | 1 of 5 [1] |"), "{table}");
    assert!(notes.contains("3 commands are finished"), "{notes}");
    assert!(exists(&unpacked.join("runs/headline-tiny/report.html")));
    // The work travels: to another folder, and to a checkout, where the same commands have the same names.
    assert!(runs(with(&["--pack", "work.tar.gz"])).1.contains("packed 3 finished and 0 unfinished of 3 commands"));
    let moved = ["--unpack", "work.tar.gz", "--no-table", "--results", "elsewhere"];
    assert!(runs(with(&moved)).1.contains("all 3 commands are finished already"));
    let mut checkout = Command::new(env!("CARGO_BIN_EXE_xtask"));
    checkout.args(grid).args(["--prebuilt", "--unpack", "work.tar.gz", "--no-table", "--results", "third"]);
    checkout.current_dir(here).env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"));
    assert!(runs(checkout).1.contains("took 3 finished and 0 unfinished commands"));

    // What needs the sources says that.
    for words in [&["test"][..], &["tidy"], &["bench", "attacks"]] {
        let (code, notes) = ended(&call("xtask", words).output().unwrap());
        assert!(code == Some(2) && notes.contains("needs a checkout of the repository"), "{words:?}: {notes}");
    }
    let nested = dist(&unpacked.join("xtask"));
    assert_eq!(ended(&nested).0, Some(2), "{}", ended(&nested).1);
}
