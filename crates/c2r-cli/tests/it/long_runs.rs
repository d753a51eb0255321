//! What a long run must survive: kills, a full disk, an explosion.

use c2r_base::Seed;

use super::*;

/// Settings of a few seconds for a method, and its number of updates.
const METHODS: [(&str, u32, &[&str]); 2] = [
    ("faithful", 60, &["--set", "companions.warm-start=true"]),
    (
        "mtt",
        30,
        &[
            "--set",
            "experts={count=2,epochs=3,batch-size=256,lr=0.1,momentum=0.0,weight-decay=0.0,adversarial=false,average=0.0}",
            "--set",
            "student={max-start=2,span=1,steps=3,batch-size=0,lr=0.1,lr-of-lr=1e-5}",
        ],
    ),
];

/// kill -9 after a seeded number of saved states, in preparation and between updates, until one run gets through.
#[test]
fn killed_anywhere_a_run_goes_on_and_ends_with_the_same_bytes() {
    const MOST_KILLS: u64 = 5;
    for (profile, iterations, settings) in METHODS {
        let (_guard, folder) = folder();
        let (whole, killed) = (folder.join("whole"), folder.join("killed"));
        let command = |run_dir: &Path, more: &[&str]| {
            let mut command = distill(run_dir, iterations, &["--config", profile]);
            command.args(settings).args(more).stderr(Stdio::null());
            command
        };
        run(&mut command(&whole, &[]));
        let mut n_kills = 0;
        for round in 0..MOST_KILLS {
            let mut child = command(&killed, &["--checkpoint-every", "1"]).spawn().unwrap();
            let n_states = 1 + Seed::new(9).child(profile, round).value() % 12;
            wait_for_writes(&killed.join("state.safetensors"), n_states, &mut child);
            child.kill().unwrap();
            if child.wait().unwrap().success() {
                break;
            }
            n_kills += 1;
            if killed.join("synthetic.safetensors").exists() {
                break;
            }
        }
        assert!(n_kills >= 1, "{profile}: nothing was killed");
        let output = run(distill(&killed, iterations, &["--config", profile]).args(settings));
        let said = text(&output.stderr);
        assert!(said.contains("resuming") || said.contains("is finished"), "{profile}: {said}");
        assert_eq!(synthetic(&whole), synthetic(&killed), "{profile}");
        // One log line per tenth iteration, none twice.
        let log = fs::read_to_string(killed.join("log.jsonl")).unwrap();
        let logged: Vec<u64> = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["iteration"].as_u64().unwrap())
            .collect();
        assert_eq!(logged, (1..=u64::from(iterations) / 10).map(|tenth| 10 * tenth).collect::<Vec<_>>(), "{profile}");
        let pictures = |run_dir: &Path| fs::read_dir(run_dir.join("pictures")).unwrap().count();
        assert_eq!(pictures(&killed), pictures(&whole), "{profile}");
        assert!(!killed.join("state.safetensors").exists(), "a finished run keeps no state");
    }
}

/// A limit on the size of files stands for a full disk: the state cannot be written, the last one stays, and the run
/// goes on from it once there is room.
#[test]
fn a_full_disk_stops_the_run_and_keeps_the_last_state() {
    let (_guard, folder) = folder();
    let (whole, full) = (folder.join("whole"), folder.join("full"));
    run(&mut distill(&whole, 30, &[]));
    let state = full.join("state.safetensors");
    let mut child = distill(&full, 30, &["--checkpoint-every", "1"]).stderr(Stdio::null()).spawn().unwrap();
    wait_for_writes(&state, 1, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!full.join("synthetic.safetensors").exists(), "it was killed too late to test anything");
    let before = fs::read(&state).unwrap();

    let inner = distill(&full, 30, &["--checkpoint-every", "1"]);
    // In units of 512 or 1024 bytes, depending on the shell; both are below the state's size and above the others'.
    let limit = before.len() / 3 / 1024;
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\""));
    limited.arg(inner.get_program()).args(inner.get_args()).env_remove("C2R_DATA");
    let (code, said) = fails(&mut limited);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("state.safetensors") && said.contains("too large"), "{said}");
    assert_eq!(fs::read(&state).unwrap(), before, "the last state is whole");
    let parts = fs::read_dir(&full)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".part"));
    assert_eq!(parts.count(), 0, "nothing half-written is left");

    run(&mut distill(&full, 30, &[]));
    assert_eq!(synthetic(&whole), synthetic(&full));
}

/// What a run can do without does not end it, and the images are the same.
#[test]
fn files_that_nobody_needs_do_not_end_a_run() {
    let (_guard, folder) = folder();
    let (whole, hindered) = (folder.join("whole"), folder.join("hindered"));
    run(&mut distill(&whole, 20, &[]));
    fs::create_dir(&hindered).unwrap();
    // Files where folders would have to be.
    fs::write(hindered.join("pictures"), "").unwrap();
    fs::write(folder.join("networks"), "").unwrap();
    let networks = folder.join("networks/shared");
    let output = run(&mut distill(&hindered, 20, &["--networks", networks.to_str().unwrap()]));
    let said = text(&output.stderr);
    for what in ["the networks for --networks", "a picture of the images"] {
        assert_eq!(
            said.matches(&format!("{what} could not be written, and the run goes on: cannot ")).count(),
            1,
            "{said}"
        );
    }
    assert_eq!(synthetic(&whole), synthetic(&hindered));
}

#[test]
fn networks_that_no_other_run_can_use_are_not_kept_in_silence() {
    let (_guard, folder) = folder();
    let networks = folder.join("networks");
    let said = |run_dir: &str, more: &[&str]| {
        let more = [more, &["--networks", networks.to_str().unwrap()]].concat();
        text(&run(&mut distill(&folder.join(run_dir), 1, &more)).stderr)
    };
    let note = "--networks has no effect";
    let remembers = ["--set", "companions.warm-start=true", "--set", "aac.remember=real"];
    assert!(said("alone", &remembers).contains(note) && !networks.exists());
    assert!(!said("shared", &[]).contains(note) && networks.exists());
}

#[test]
fn an_exploding_run_stops_and_keeps_the_last_state() {
    let (_guard, folder) = folder();
    let more = ["--checkpoint-every", "1", "--set", "pool.lr=1e20"];
    let (code, said) = fails(&mut distill(&folder, 30, &more));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("NaN") && said.contains("lower the learning rates"), "{said}");
    let state = TensorFile::read(&folder.join("state.safetensors")).unwrap();
    let finite = |tensor: &tch::Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
    assert!(finite(&state.tensors["images"]), "the last good state is kept");
}

#[test]
fn checkpoints_come_by_time_too() {
    let (_guard, folder) = folder();
    let more = ["--checkpoint-every", "1000000", "--checkpoint-seconds", "0"];
    let mut child = distill(&folder, 20_000, &more).stderr(Stdio::null()).spawn().unwrap();
    wait_for_writes(&folder.join("state.safetensors"), 1, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The folder says what was done, how, and how it went; the stream says it while it goes.
#[test]
fn a_run_explains_itself() {
    let (_guard, folder) = folder();
    let output = run(&mut distill(&folder, 20, &["--json", "--pictures", "4"]));
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, steps) = lines.split_last().unwrap();
    let last = steps.last().unwrap();
    assert_eq!((last["stage"].as_str(), last["iteration"].as_u64()), (Some("images"), Some(20)), "{last}");
    assert_eq!(steps[0]["stage"], "preparation", "{}", steps[0]);
    assert!(last["images_per_second"].as_f64().unwrap() > 0.0 && last["seconds_left"].as_f64().is_some(), "{last}");
    assert_eq!(last["margin_quantiles"].as_array().map(Vec::len), Some(3), "{last}");
    assert_eq!(last["reused_share"].as_f64(), Some(0.0), "{last}");
    let claims = &summary["claims"];
    assert!(claims["impostor_similarity_before"].is_f64() && claims["margin_quantiles_after"].is_array(), "{summary}");

    let record: Value = serde_json::from_slice(&fs::read(folder.join("run.json")).unwrap()).unwrap();
    assert_eq!(record["config"]["distill"]["objective"]["eta"], 0.4, "what follows from others is written out");
    assert!(record["versions"]["git"].is_string() && record["summary"]["claims"].is_object(), "{record}");
    let svg = fs::read_to_string(folder.join("curves.svg")).unwrap();
    assert!(svg.contains("margins of the real images") && svg.contains("saved against PGD-10"), "{svg}");
    let mut pictures: Vec<String> = fs::read_dir(folder.join("pictures"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pictures.sort();
    assert_eq!(pictures, ["000000.png", "000005.png", "000010.png", "000015.png", "000020.png"]);

    let (code, said) = fails(distill(&folder, 20, &["--config", "dmm"]).arg("--force"));
    assert!(code == 2 && said.contains("no profile `dmm`") && said.contains("class-mean"), "{said}");
    run(&mut distill(&folder, 4, &["--force", "--pictures", "0"]));
    assert!(!folder.join("pictures").exists(), "what another run left is discarded");
}
