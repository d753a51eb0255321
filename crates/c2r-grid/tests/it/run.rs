//! Grids run with a shell script in the place of `c2r`.

use std::{fs, path::Path, thread};

use c2r_grid::{
    Failed, Failure, Grid, Job, MOST_BYTES, Packed, Reproduction, Summary, Taken, finished, pack, run, unpack,
};
use c2r_run::{Lock, exit};

use super::example::{Example, datasets};

/// Counts its calls, fails for seed 1's distillation with code 3, and otherwise writes the files that its arguments name.
const C2R: &str = r#"#!/bin/sh
echo "$*" >> calls
command=$1
while [ $# -gt 0 ]; do
    case $1 in
        --run-dir) dir=$2 ;;
        --output) out=$2 ;;
        --synthetic | --checkpoint) test -f "$2" || { echo "no input $2"; exit 9; } ;;
        --seed) seed=$2 ;;
    esac
    shift
done
if [ "$command$seed" = distill1 ]; then echo "error: cannot read data_batch_1.bin"; exit 3; fi
case $command in
    distill) mkdir -p "$dir" && echo "$seed" > "$dir/synthetic.safetensors" ;;
    train) mkdir -p "$dir" && echo "$seed" > "$dir/model.safetensors" && echo "{}" > "$dir/run.json" ;;
    attack) echo "{}" > "$out" ;;
esac
"#;

fn n_calls(example: &Example) -> usize {
    fs::read_to_string(example.folder.path().join("calls")).unwrap().lines().count()
}

#[test]
fn a_grid_runs_fails_in_part_and_is_not_run_twice() {
    let example = Example::new();
    example.program(C2R);
    let run_all = |jobs: &[Job]| run(jobs, &finished(jobs), 3, &example.place).unwrap();

    // Per seed and method one distillation, two trainings, four attacks; seed 1 fails at once.
    let jobs = example.jobs("dataset=digits,ipc=10");
    assert_eq!(jobs.len(), 2 * 3 * 7);
    let summary = run_all(&jobs);
    assert_eq!((summary.n_finished, summary.n_reused, summary.n_blocked), (28, 0, 12));
    assert_eq!(summary.failures.len(), 2);
    assert!(summary.failures.iter().all(|failure| failure.failed.code == 3));
    let Failure { position, failed } = &summary.failures[0];
    let report = &failed.report;
    assert!(report.contains("seed1 distill failed: exit status: 3\n  command: c2r distill "), "{report}");
    assert!(report.contains("data_batch_1.bin"), "{report}");
    let kept: Failed = c2r_files::read_json(&jobs[*position].folder.join("failed.json")).unwrap();
    assert_eq!(&kept.report, report);
    assert_eq!(n_calls(&example), 30);

    // The second time, only what failed is started.
    let again = run_all(&jobs);
    assert_eq!((again.n_finished, again.n_reused, again.n_blocked), (0, 28, 12));
    assert_eq!(n_calls(&example), 32);

    // Another profile is another result, from the distillation on.
    let profile = example.folder.path().join("data/profiles/faithful.toml");
    fs::write(&profile, "eta = 0.6").unwrap();
    let jobs = example.jobs("dataset=digits,ipc=10,method=c2r,seed=0");
    assert_eq!(finished(&jobs), [false; 7]);
    assert_eq!(run_all(&jobs).n_finished, 7);
    assert_eq!(finished(&jobs), [true; 7]);

    // And the first one is still there.
    fs::write(&profile, "eta = 0.4").unwrap();
    assert_eq!(finished(&example.jobs("dataset=digits,ipc=10,method=c2r,seed=0")), [true; 7]);
}

#[test]
fn finished_means_recorded_and_the_output_there() {
    let example = Example::new();
    example.program(C2R);
    let jobs = example.jobs("dataset=digits,ipc=1,method=c2r,seed=0")[..1].to_vec();
    assert_eq!(finished(&jobs), [false]);
    assert_eq!(run(&jobs, &[false], 1, &example.place).unwrap().n_finished, 1);
    assert_eq!(finished(&jobs), [true]);
    let copied = [Job { id: "distill-other".into(), ..jobs[0].clone() }];
    assert_eq!(finished(&copied), [false], "a folder that was copied under another name");
    fs::remove_file(jobs[0].output()).unwrap();
    assert_eq!(finished(&jobs), [false]);
}

/// Finished and begun work of one machine, taken up on another one.
#[test]
fn a_grid_travels() {
    let (here, there) = (Example::new(), Example::new());
    here.program(C2R);
    there.program(C2R);
    let selection = "dataset=digits,ipc=10,method=c2r";
    let (jobs, other) = (here.jobs(selection), there.jobs(selection));
    let file = here.folder.path().join("work.tar.gz");
    let nothing = pack(&jobs, &file, MOST_BYTES).unwrap_err();
    assert!(exit::code_of(&nothing) == exit::USAGE && !file.exists());
    let missing = unpack(&jobs, &file, &there.place.results).unwrap_err();
    assert!(exit::code_of(&missing) == exit::DATA && exit::message(&missing).starts_with("cannot read the archive"));

    // Seed 1 fails; its distillation has been begun. A state, a lock and what a reader may not follow lie there, too.
    run(&jobs, &finished(&jobs), 2, &here.place).unwrap();
    let begun = jobs.iter().position(|job| job.cell.seed == 1).unwrap();
    let (from, to) = (&jobs[begun].folder, &other[begun].folder);
    fs::write(from.join("state.safetensors"), [7; 5000]).unwrap();
    fs::write(from.join("attack.run.lock"), "").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", from.join("link")).unwrap();
    let packed = pack(&jobs, &file, MOST_BYTES).unwrap();
    assert_eq!(packed, Packed { n_finished: 14, n_unfinished: 1, ..Packed::default() });

    let into = there.place.results.join("jobs");
    let none = unpack(&[], &file, &into).unwrap();
    assert_eq!(none, Taken { n_others: 15, ..Taken::default() }, "another part of the grid");
    let taken = unpack(&other, &file, &into).unwrap();
    assert_eq!(taken, Taken { n_finished: 14, n_unfinished: 1, ..Taken::default() });
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != ".job.lock");
        names.sort();
        names
    };
    assert_eq!(names(to), ["failed.json", "log", "state.safetensors"]);
    assert_eq!(fs::read(to.join("state.safetensors")).unwrap(), [7; 5000]);
    let rest = run(&other, &finished(&other), 2, &there.place).unwrap();
    assert_eq!((rest.n_reused, rest.n_finished, n_calls(&there)), (14, 0, 1), "only seed 1 is tried again");
    // What is here stays, and nothing of the archive is left over.
    fs::write(to.join("state.safetensors"), "mine").unwrap();
    let kept = Taken { n_kept: 14, as_far: vec![other[begun].name()], ..Taken::default() };
    assert_eq!(unpack(&other, &file, &into).unwrap(), kept);
    assert_eq!(fs::read(to.join("state.safetensors")).unwrap(), b"mine");
    // Of what is unfinished on both sides, the side with more time in it stays.
    for (there, taken) in [(21.0, false), (20.0, false), (19.5, true)] {
        fs::write(from.join("run.json"), r#"{"seconds": 20.0}"#).unwrap();
        fs::write(to.join("run.json"), format!(r#"{{"seconds": {there}}}"#)).unwrap();
        pack(&jobs, &file, MOST_BYTES).unwrap();
        let found = unpack(&other, &file, &into).unwrap();
        assert_eq!(found.n_unfinished, usize::from(taken), "{there} s there");
        assert_eq!(found.replaced.len(), usize::from(taken), "{there} s there");
        assert_eq!(fs::read(to.join("state.safetensors")).unwrap() == [7; 5000], taken);
    }
    assert!(!names(&into).iter().any(|name| name.to_string_lossy().starts_with('.')), "{:?}", names(&into));
}

/// The folder of a job and its lock stay where they are while its files are replaced, so that nobody claims it in between. Where that
/// fails, nothing is lost.
#[test]
fn what_an_archive_replaces_stays_locked_and_comes_back_after_an_error() {
    use std::os::unix::fs::MetadataExt;

    let (here, there) = (Example::new(), Example::new());
    let selection = "dataset=digits,ipc=10,method=c2r,seed=0,protocol=natural,attack=pgd";
    let (jobs, other) = (here.jobs(selection)[..1].to_vec(), there.jobs(selection)[..1].to_vec());
    let (from, to, into) = (&jobs[0].folder, &other[0].folder, there.place.results.join("jobs"));
    for (folder, seconds) in [(from, 20), (to, 5)] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("run.json"), format!("{{\"seconds\": {seconds}.0}}")).unwrap();
        fs::write(folder.join("state.safetensors"), format!("{seconds}")).unwrap();
        fs::write(folder.join(format!("only-{seconds}")), "").unwrap();
    }
    let file = here.folder.path().join("work.tar.gz");
    pack(&jobs, &file, MOST_BYTES).unwrap();
    let text = |name: &str| fs::read_to_string(to.join(name)).unwrap_or_default();

    // A folder where the archive has a file: its file can be moved away, and nothing can take its place.
    fs::remove_file(to.join("state.safetensors")).unwrap();
    fs::create_dir(to.join("state.safetensors")).unwrap();
    fs::write(to.join("state.safetensors/mine"), "5").unwrap();
    let error = unpack(&other, &file, &into).unwrap_err();
    assert!(error.to_string().ends_with("state.safetensors"), "{error:#}");
    assert_eq!((text("run.json").as_str(), text("state.safetensors/mine").as_str()), ("{\"seconds\": 5.0}", "5"));
    assert!(to.join("only-5").exists() && !to.join("only-20").exists());

    fs::remove_dir_all(to.join("state.safetensors")).unwrap();
    let lock = || fs::metadata(to.join(".job.lock")).unwrap().ino();
    let before = lock();
    assert_eq!(unpack(&other, &file, &into).unwrap().replaced, [other[0].name()]);
    assert_eq!((text("run.json").as_str(), text("state.safetensors").as_str()), ("{\"seconds\": 20.0}", "20"));
    assert!(!to.join("only-5").exists() && to.join("only-20").exists());
    assert_eq!(lock(), before, "another process could have claimed the job");
}

#[test]
fn an_archive_of_work_has_room_for_so_much_and_names_the_rest() {
    let example = Example::new();
    example.program(C2R);
    let jobs = example.jobs("dataset=digits,ipc=10,method=c2r,seed=0");
    run(&jobs, &finished(&jobs), 2, &example.place).unwrap();
    for (position, bytes) in [(0, 90_000), (2, 50_000)] {
        fs::write(jobs[position].folder.join("state.safetensors"), vec![0; bytes]).unwrap();
    }
    let file = example.folder.path().join("work.tar.gz");
    let left_out = |most| -> Vec<String> {
        pack(&jobs, &file, most).unwrap().left_out.into_iter().map(|(name, _)| name).collect()
    };
    assert!(left_out(MOST_BYTES).is_empty());
    assert_eq!(left_out(100_000), [jobs[0].name()]);
    assert_eq!(left_out(40_000), [jobs[0].name(), jobs[2].name()]);
    let _held = c2r_run::Lock::acquire(&jobs[1].folder.join(".job.lock")).unwrap().unwrap();
    let packed = pack(&jobs, &file, MOST_BYTES).unwrap();
    assert_eq!((packed.n_finished, packed.busy), (6, vec![jobs[1].name()]));

    fs::write(&file, "no archive").unwrap();
    let error = unpack(&jobs, &file, &example.place.results.join("jobs")).unwrap_err();
    assert_eq!(exit::code_of(&error), exit::DATA, "{error:#}");
    assert_eq!(finished(&jobs), [true; 7]);
}

/// Two processes in one results folder: each job runs once, and both see all of them finished.
#[test]
fn two_at_once_share_the_work() {
    let example = Example::new();
    example.program(C2R);
    let jobs = example.jobs("dataset=digits,ipc=10,seed=0,seed=2");
    let before = finished(&jobs);
    let (one, two) = thread::scope(|scope| {
        let other = scope.spawn(|| run(&jobs, &before, 2, &example.place).unwrap());
        (run(&jobs, &before, 2, &example.place).unwrap(), other.join().unwrap())
    });
    assert!(one.failures.is_empty() && two.failures.is_empty());
    assert_eq!((one.n_done(), two.n_done()), (28, 28));
    assert_eq!(one.n_finished + two.n_finished, 28, "each job ran once");
    assert_eq!(n_calls(&example), 28);
}

/// A table has what finished while its process waited for another one's.
#[test]
fn one_process_at_a_time_makes_a_table() {
    let example = Example::new();
    example.program(C2R);
    let jobs = example.jobs("dataset=digits,ipc=10,seed=0,method=c2r");
    let datasets = datasets(&example.place);
    let (experiment, place) = (&example.experiment, &example.place);
    let grid = Grid { experiment, scale: experiment.scale("quick").unwrap(), place, datasets: &datasets };
    let reproduction = Reproduction { grid, scale_name: "quick", changes: vec![], own_files: vec![], at_once: None };
    let lock = Lock::acquire(&place.results.join(".example-quick.lock")).unwrap().unwrap();
    thread::scope(|scope| {
        let table = scope.spawn(|| reproduction.table().unwrap());
        run(&jobs, &finished(&jobs), 2, place).unwrap();
        assert!(!table.is_finished());
        drop(lock);
        assert_eq!(table.join().unwrap(), Some(false));
    });
}

#[test]
fn failures_that_agree_give_their_code() {
    let jobs = Example::new().jobs("");
    let code = |codes: &[u8]| {
        let failure = |&code| Failure { position: 0, failed: Failed { code, report: "why".into() } };
        let summary = Summary { failures: codes.iter().map(failure).collect(), ..Summary::default() };
        summary.conclude(&jobs, true).map_or_else(
            |error| {
                assert!(error.to_string().ends_with("run the same command without --force"), "{error}");
                exit::code_of(&error)
            },
            |()| 0,
        )
    };
    assert_eq!(code(&[]), 0);
    assert_eq!(code(&[3, 3]), 3);
    assert_eq!(code(&[3, 1]), exit::UNEXPECTED);
}
