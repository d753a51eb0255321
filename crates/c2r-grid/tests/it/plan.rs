//! From grids to jobs: their arguments, names and order.

use std::{collections::BTreeSet, fs, path::Path};

use c2r_experiment::{Experiment, Scale, Selection, Subgrid};
use c2r_files::shell_line;
use c2r_grid::{Datasets, Grid, Job, Shard, Workplace, experiment_names, read_experiment};
use c2r_run::exit;

use super::example::{Example, datasets};

#[test]
fn the_whole_grid_and_what_is_not_implemented() {
    let example = Example::new();
    let plan = example.plan_in(&example.place, &Subgrid::default(), Shard::ALL).unwrap();
    // Per protocol one training and two attacks; per dataset and seed the reference, and 2 methods x 2 ipcs that are
    // distilled first.
    assert_eq!(plan.jobs.len(), 2 * 3 * (2 * 3 + 2 * 2 * (1 + 2 * 3)));
    assert_eq!(plan.n_chains, 2 * 3 * 5);
    assert_eq!(plan.not_implemented.iter().collect::<Vec<_>>(), ["dm"]);
}

#[test]
fn one_cell_in_full() {
    let example = Example::new();
    let jobs = example.jobs("dataset=cifar10,ipc=10,method=class-mean,seed=2,protocol=natural");
    let lines: Vec<String> = jobs.iter().map(|job| shell_line(job.args())).collect();
    let job = |position: usize| format!("runs/jobs/{}", jobs[position].id);
    let common = "--data cifar --threads 1";
    assert_eq!(
        lines,
        [
            format!(
                "distill --config data/profiles/faithful.toml --dataset cifar10 --ipc 10 --seed 2 --name class-mean \
                 --train-per-class 500 --set model=ConvNet-D3-W32-IN --set iterations=30 --set eta=0.6 --set crl=false \
                 --run-dir {} --networks runs/networks {common}",
                job(0)
            ),
            format!(
                "train --protocol natural --seed 2 --model ConvNet-D3-W32-IN --set steps=20 --synthetic \
                 {}/synthetic.safetensors --run-dir {} {common}",
                job(0),
                job(1)
            ),
            format!(
                "attack --dataset cifar10 --attack fgsm --norm linf --eps 0.1 --each --seed 2 --n-test 100 \
                 --checkpoint {}/model.safetensors --output {}/attack.json {common}",
                job(1),
                job(2)
            ),
            format!(
                "attack --dataset cifar10 --attack pgd --norm linf --eps 0.1 --each --seed 2 --n-test 100 \
                 --set pgd.steps=3 --set pgd.step-size=2/255 --checkpoint {}/model.safetensors --output \
                 {}/attack.json {common}",
                job(1),
                job(3)
            ),
        ]
    );
    assert_eq!(jobs.iter().map(|job| job.needs).collect::<Vec<_>>(), [None, Some(0), Some(1), Some(1)]);
    assert_eq!(jobs[3].name(), "cifar10/ipc10/class-mean/seed2 attack natural-pgd-0.1");
}

#[test]
fn the_last_of_several_settings_counts() {
    let example = Example::new();
    let jobs = example.jobs("dataset=digits,ipc=1,method=c2r,seed=0,attack=pgd");
    let line = |position: usize| shell_line(&jobs[position].what);
    assert!(line(2).ends_with("--set pgd.step-size=2/255 --set pgd.steps=5"), "{}", line(2));
    assert!(line(4).ends_with("--set pgd.steps=3 --set pgd.step-size=2/255"), "{}", line(4));
}

#[test]
fn held_out_images_are_judged_after_the_same_training() {
    let example = Example::new();
    let only = "dataset=digits,ipc=1,method=c2r,seed=0,protocol=natural,attack=pgd";
    let datasets = datasets(&example.place);
    let scale = Scale { held_out: true, ..example.experiment.scale("quick").unwrap().clone() };
    let grid = Grid { experiment: &example.experiment, scale: &scale, place: &example.place, datasets: &datasets };
    let held_out = grid.plan(&only.parse().unwrap(), Shard::ALL).unwrap().jobs;
    let test = example.jobs(only);
    let ids = |jobs: &[Job]| jobs.iter().map(|job| job.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&held_out)[..2], ids(&test)[..2]);
    assert_ne!(held_out[2].id, test[2].id);
    assert!(shell_line(&held_out[2].what).contains("--held-out-after 500 --n-test 100"));
}

#[test]
fn a_grid_without_held_out_images_is_refused() {
    let example = Example::new();
    let registry = example.place.root.join("data/datasets.toml");
    let text = std::fs::read_to_string(&registry).unwrap();
    // Two classes of 500 images each.
    std::fs::write(&registry, text.replace("name = \"cifar10\"", "name = \"cifar10\"\nn_train = 1000")).unwrap();
    let datasets = datasets(&example.place);
    let planned = |train_per_class: usize, held_out: bool, only: &str| {
        let quick = example.experiment.scale("quick").unwrap().clone();
        let scale = Scale { held_out, train_per_class: Some(train_per_class), ..quick };
        let grid = Grid { experiment: &example.experiment, scale: &scale, place: &example.place, datasets: &datasets };
        grid.plan(&only.parse().unwrap(), Shard::ALL).map(drop)
    };
    for (train_per_class, held_out, only) in
        [(499, true, "method=c2r"), (500, false, "method=c2r"), (500, true, "dataset=digits")]
    {
        planned(train_per_class, held_out, only).unwrap();
    }
    let error = planned(500, true, "method=c2r").unwrap_err();
    let message = exit::message(&error);
    assert!(message.contains("first 500 images of each class, and cifar10 has 500 of each"), "{message}");
    assert_eq!(exit::code_of(&error), exit::USAGE);
}

#[test]
fn a_grid_may_ask_for_a_chosen_step() {
    let mut example = Example::new();
    let only = "dataset=digits,ipc=1,method=c2r,seed=0,protocol=natural,attack=pgd";
    let ids = |example: &Example| example.jobs(only).into_iter().map(|job| job.id).collect::<Vec<_>>();
    let usual = ids(&example);
    let mut select = |which: Selection| {
        example.experiment.scales.get_mut("quick").unwrap().select = Some(which);
        (ids(&example), shell_line(&example.jobs(only)[1].what))
    };
    assert_eq!(select(Selection::Last).0, usual, "goes without saying");
    let (chosen, train) = select(Selection::HeldOut);
    assert!(train.contains(" --select held-out "), "{train}");
    assert_eq!(chosen[0], usual[0], "the same distilled set");
    assert!(chosen[1] != usual[1] && chosen[2] != usual[2]);
}

#[test]
fn the_reference_is_trained_on_the_dataset() {
    let jobs = Example::new().jobs("dataset=digits,ipc=all,seed=0");
    assert_eq!(jobs.len(), 6);
    assert_eq!(jobs[0].name(), "digits/all/full/seed0 train natural");
    assert!(
        shell_line(jobs[0].args())
            .starts_with("train --protocol natural --seed 0 --dataset digits --train-per-class 500")
    );
    assert!(jobs[0].needs.is_none() && jobs[3].needs.is_none());
}

#[test]
fn every_needed_command_comes_first_and_feeds_the_one_that_needs_it() {
    let jobs = Example::new().jobs("");
    for (position, job) in jobs.iter().enumerate() {
        if let Some(needed) = job.needs {
            assert!(needed < position && jobs[needed].chain == job.chain);
            let input = Example::new().place.show(&jobs[needed].output());
            let name = input.split("jobs/").last().unwrap();
            assert!(job.how.iter().any(|word| word.ends_with(name)), "{input}");
        }
    }
    let ids: BTreeSet<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
    assert_eq!(ids.len(), jobs.len(), "no two commands of a grid are the same");
}

#[test]
fn selections_add_up_and_mistakes_are_named() {
    let example = Example::new();
    assert_eq!(example.jobs("dataset=digits,seed=0,ipc=1,ipc=10,method=c2r").len(), 14);
    let merged = Subgrid::merge(["ipc=1", "ipc=10"].map(|text| text.parse().unwrap()));
    assert_eq!(merged, "ipc=1,ipc=10".parse().unwrap());
    assert_eq!(merged.to_string(), "ipc=1,ipc=10");
    let message =
        |only: &str| exit::message(&example.plan_in(&example.place, &only.parse().unwrap(), Shard::ALL).unwrap_err());
    assert!(message("dataset=mnist").contains("no dataset `mnist`; there are: digits, cifar10"));
    assert!(message("ipc=5").contains("there are: 1, 10, all"));
    assert!(message("method=full,ipc=1").contains("`ipc=all`"));
    assert!(message("method=dm").contains("`dm` is not implemented"));
    assert!("dataset".parse::<Subgrid>().unwrap_err().contains("not key=value"));
    assert!("size=3".parse::<Subgrid>().unwrap_err().contains("no key `size`; there are: dataset, ipc"));
}

#[test]
fn shards_split_the_grid_between_chains() {
    let example = Example::new();
    let whole: BTreeSet<String> = example.jobs("").into_iter().map(|job| job.id).collect();
    let mut union = BTreeSet::new();
    for index in 0..4 {
        let shard: Shard = format!("{}/4", index + 1).parse().unwrap();
        let plan = example.plan_in(&example.place, &Subgrid::default(), shard).unwrap();
        assert_eq!(plan.n_chains, 30);
        assert!(plan.jobs.iter().all(|job| job.chain % 4 == index));
        for job in plan.jobs {
            assert!(union.insert(job.id), "in two shards");
        }
    }
    assert_eq!(union, whole);
    assert_eq!("2/4".parse::<Shard>().unwrap().to_string(), "2/4");
    for wrong in ["0/4", "5/4", "1", "a/b", "1/0"] {
        assert!(wrong.parse::<Shard>().unwrap_err().contains("I/N"), "{wrong}");
    }
}

#[test]
fn places_change_how_and_not_what() {
    let example = Example::new();
    let elsewhere = Workplace {
        results: "/elsewhere/runs".into(),
        threads: None,
        device: Some("cuda:1".into()),
        force: true,
        ..example.place.clone()
    };
    let here = example.jobs("");
    let there = example.plan_in(&elsewhere, &Subgrid::default(), Shard::ALL).unwrap().jobs;
    assert!(here.iter().zip(&there).all(|(a, b)| a.what == b.what && a.id == b.id));
    assert_eq!(
        shell_line(&there[0].how),
        format!("--run-dir /elsewhere/runs/jobs/{} --data cifar --device cuda:1 --force", here[0].id)
    );
}

#[test]
fn an_id_changes_with_all_that_decides_the_result_and_so_do_those_behind_it() {
    let example = Example::new();
    let only = "dataset=cifar10,ipc=1,method=c2r,seed=0,protocol=natural,attack=pgd";
    let ids = |example: &Example| example.jobs(only).into_iter().map(|job| job.id).collect::<Vec<_>>();
    let before = ids(&example);
    let profile = example.folder.path().join("data/profiles/faithful.toml");
    std::fs::write(&profile, "# a comment\neta    = 0.4").unwrap();
    assert_eq!(ids(&example), before, "comments and spaces decide nothing");
    std::fs::write(&profile, "eta = 0.6").unwrap();
    let other = ids(&example);
    assert!(before.iter().zip(&other).all(|(a, b)| a != b), "another profile");
    let base = example.folder.path().join("data/profiles/base.toml");
    std::fs::write(&profile, "base = \"base\"\neta = 0.4").unwrap();
    std::fs::write(&base, "ipc = 1").unwrap();
    let based = ids(&example);
    std::fs::write(&base, "ipc = 2").unwrap();
    assert!(based.iter().zip(&ids(&example)).all(|(a, b)| a != b), "another base");
    std::fs::write(&profile, "eta = 0.4").unwrap();
    assert_eq!(ids(&example), before);

    let protocol = example.folder.path().join("data/protocols/natural.toml");
    std::fs::write(&protocol, "lr = 0.02").unwrap();
    let retrained = ids(&example);
    assert_eq!(retrained[0], before[0], "a set does not depend on how networks are trained on it");
    assert!(before[1..].iter().zip(&retrained[1..]).all(|(a, b)| a != b), "another protocol");
    std::fs::write(&protocol, "lr = 0.01").unwrap();
    assert_eq!(ids(&example), before);

    let data = example.folder.path().join("cifar/cifar-10-batches-bin/data_batch_1.bin");
    std::fs::write(data, "other pixels").unwrap();
    assert!(before.iter().zip(&ids(&example)).all(|(a, b)| a != b), "other data");
}

/// As `c2r` looks for it: among its own profiles, wherever the profile that builds on it lies.
#[test]
fn the_base_of_a_profile_elsewhere_counts() {
    let mut example = Example::new();
    let root = example.folder.path().to_owned();
    let write = |name: &str, text: &str| c2r_files::write_atomically(&root.join(name), text.as_bytes()).unwrap();
    let file = root.join("data/paper/example.toml");
    let experiment = fs::read_to_string(&file).unwrap().replace("data/profiles/faithful.toml", "my/own.toml");
    write("data/paper/example.toml", &experiment);
    example.experiment = Experiment::read(&file).unwrap();
    write("my/own.toml", "base = \"base\"\neta = 0.4");
    let id = || example.jobs("dataset=cifar10,method=c2r").swap_remove(0).id;
    let [first, second, round] = ["ipc = 1", "ipc = 2", "base = \"base\"\nipc = 2"].map(|base| {
        write("data/profiles/base.toml", base);
        id()
    });
    assert!(first != second && second != round, "another base, and one that goes round");
    // What lies beside the profile is not its base.
    write("my/base.toml", "ipc = 3");
    assert_eq!(id(), round);
}

#[test]
fn contents_of_a_dataset_decide_and_what_is_not_here_is_named() {
    let example = Example::new();
    let first = |example: &Example| example.jobs("dataset=cifar10").swap_remove(0).id;
    let before = first(&example);
    let folder = example.folder.path().join("cifar/cifar-10-batches-bin");
    fs::write(folder.join("readme.html"), "other words").unwrap();
    fs::write(folder.join(".hidden.bin"), "other words").unwrap();
    assert_eq!(first(&example), before);
    fs::write(folder.join("data_batch_2.bin"), "more pixels").unwrap();
    assert_ne!(first(&example), before);
    fs::remove_file(folder.join("data_batch_2.bin")).unwrap();
    assert_eq!(first(&example), before);

    // The folder itself as the data folder, as `c2r` takes it.
    let itself = Workplace { data: Some(folder.clone()), ..example.place.clone() };
    let only: Subgrid = "dataset=cifar10".parse().unwrap();
    assert_eq!(example.plan_in(&itself, &only, Shard::ALL).unwrap().jobs[0].id, before);

    let without = Workplace { data: None, ..example.place.clone() };
    let missing = datasets(&without).missing(&["digits", "cifar10"].map(String::from));
    assert_eq!(missing, ["cifar10"]);

    // Data that nobody asked for is not read.
    std::os::unix::fs::symlink("/nowhere", example.folder.path().join("cifar/cifar-10-batches-bin/broken.bin"))
        .unwrap();
    assert!(Datasets::read(&example.place, &["digits".to_owned()]).is_ok());
    let error = Datasets::read(&example.place, &["cifar10".to_owned()]).unwrap_err();
    assert!(exit::code_of(&error) == exit::DATA && exit::message(&error).contains("broken.bin"), "{error:#}");
}

#[test]
fn a_subset_is_its_classes() {
    let example = Example::new();
    let registry = example.folder.path().join("data/datasets.toml");
    let text = fs::read_to_string(&registry).unwrap().replace("\"cifar10\"", "\"class-folders\"");
    let text = text.replace("name = \"class-folders\"", "name = \"cifar10\"\nwnids = [\"n01\"]");
    fs::write(registry, text).unwrap();
    let folder = example.folder.path().join("cifar/cifar-10-batches-bin/train");
    for class in ["n01", "n02"] {
        fs::create_dir_all(folder.join(class)).unwrap();
        fs::write(folder.join(class).join("1.JPEG"), class).unwrap();
    }
    let first = || example.jobs("dataset=cifar10").swap_remove(0).id;
    let before = first();
    fs::write(folder.join("n02/2.JPEG"), "another class").unwrap();
    assert_eq!(first(), before);
    fs::write(folder.join("n01/2.JPEG"), "another image").unwrap();
    let flat = first();
    assert_ne!(flat, before);
    // Test images of all classes in one folder, and the file that says which are of which class.
    let split = folder.parent().expect("it has one").to_owned();
    fs::create_dir_all(split.join("val")).unwrap();
    let mut seen = BTreeSet::from([flat]);
    for (file, text) in
        [("val/1.JPEG", "an image"), ("val/1.JPEG", "another"), ("LOC_val_solution.csv", "1,n01 1 1 2 2")]
    {
        fs::write(split.join(file), text).unwrap();
        assert!(seen.insert(first()), "{file}: {text}");
    }
}

/// The repository itself, without data, and results in `folder`.
fn repository(folder: &Path) -> Workplace {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Workplace {
        c2r: root.join("c2r"),
        results: folder.to_owned(),
        data: None,
        root,
        can_build: true,
        threads: None,
        device: None,
        force: false,
        estimate_for: None,
    }
}

/// Every experiment of the repository can be planned at every scale, with or without data.
#[test]
fn every_experiment_has_a_plan() {
    let folder = tempfile::tempdir().unwrap();
    let place = repository(folder.path());
    let root = &place.root;
    let datasets = datasets(&place);
    let names = experiment_names(root).unwrap();
    let ids = |name: &str, scale: &str| -> BTreeSet<String> {
        let experiment = read_experiment(root, name).unwrap().experiment;
        let scale = experiment.scale(scale).unwrap();
        let grid = Grid { experiment: &experiment, scale, place: &place, datasets: &datasets };
        grid.whole().unwrap().jobs.into_iter().map(|job| job.id).collect()
    };
    for name in [
        "ablation",
        "autoattack",
        "cifar100",
        "cross-arch",
        "drop-rate",
        "eta",
        "imagenet-subsets",
        "larger-eps",
        "ls-pgd",
        "negatives",
        "table2",
        "tiny-imagenet",
    ] {
        assert!(names.iter().any(|there| there == name), "{name}");
        for (scale, grid) in read_experiment(root, name).unwrap().experiment.scales {
            assert!(ids(name, &scale).len() > 5, "{name} {scale}");
            for reference in ["full", "random-real"] {
                assert!(grid.methods.iter().any(|method| method == reference), "{name} {scale} has no {reference}");
            }
            // The digits' own methods store no mosaics.
            let mosaics = grid.methods.iter().any(|method| method == "random-real-mosaic");
            assert_eq!(mosaics, scale != "quick", "{name} {scale}: real images in mosaics");
        }
    }
    // What experiments have in common is done once.
    let distilled = |name| ids(name, "paper").into_iter().filter(|id| id.starts_with("distill")).collect();
    let table2: BTreeSet<String> = distilled("table2");
    let drop_rate: BTreeSet<String> = distilled("drop-rate");
    assert!(drop_rate.is_subset(&table2));
    let larger_eps: BTreeSet<String> = distilled("larger-eps");
    assert!(larger_eps.is_subset(&table2));
    let trained = |name| ids(name, "quick").into_iter().filter(|id| id.starts_with("train")).collect();
    let (cross, quick): (BTreeSet<String>, BTreeSet<String>) = (trained("cross-arch"), trained("table2"));
    assert_eq!(cross.intersection(&quick).count(), 4 * 3 * 2, "the digits' own network, named or not");
    let ablation: BTreeSet<String> = distilled("ablation");
    let shared = ablation.intersection(&table2).count();
    assert_eq!(shared, 4 * 3 * 5, "four distilled methods, three datasets, five seeds");
    assert!(ids("drop-rate", "paper").is_subset(&ids("table2", "paper")), "attacks too");
}

/// A distilled set is trained on for a number of steps that says nothing of a whole training set.
#[test]
fn references_have_a_length_of_their_own_in_every_experiment() {
    let folder = tempfile::tempdir().unwrap();
    let place = repository(folder.path());
    let root = &place.root;
    let datasets = datasets(&place);
    let mut n_references = 0;
    for name in experiment_names(root).unwrap() {
        let experiment = read_experiment(root, &name).unwrap().experiment;
        for (scale_name, scale) in &experiment.scales {
            let jobs =
                Grid { experiment: &experiment, scale, place: &place, datasets: &datasets }.whole().unwrap().jobs;
            for job in jobs.iter().filter(|job| job.id.starts_with("train-") && job.needs.is_none()) {
                let of = |key: &str| job.what.iter().find(|word| word.starts_with(key)).map(String::as_str);
                // At full scale the protocol's own section [full-data] holds.
                let (length, schedule) =
                    if scale_name == "paper" { (None, None) } else { (Some("length={epochs="), Some("lr-schedule=")) };
                for (key, expected) in [("length=", length), ("lr-schedule=", schedule)] {
                    let found = of(key);
                    let fits = found
                        .zip(expected)
                        .map_or(found.is_none() && expected.is_none(), |(found, start)| found.starts_with(start));
                    assert!(fits, "{name} {scale_name}: {found:?} for {}", job.name());
                }
                n_references += 1;
            }
        }
    }
    assert!(n_references > 100, "{n_references}");
}

/// The names of the jobs of `data/paper/headline.toml`, in their order, without the dataset; and their folders' names.
fn headline(scale: &str, seeds: &[u64], only: &str, shard: Shard) -> (Vec<String>, BTreeSet<String>) {
    let folder = tempfile::tempdir().unwrap();
    let place = repository(folder.path());
    let datasets = datasets(&place);
    let mut experiment = read_experiment(&place.root, "headline").unwrap().experiment;
    experiment.change_grid(scale, seeds, &[]).unwrap();
    let scale = experiment.scale(scale).unwrap();
    let grid = Grid { experiment: &experiment, scale, place: &place, datasets: &datasets };
    let jobs = grid.plan(&only.parse().unwrap(), shard).unwrap().jobs;
    for (position, job) in jobs.iter().enumerate() {
        if let Some(needed) = job.needs {
            assert!(needed < position, "{} comes before what it needs", job.name());
            assert!(job.args().any(|word| word.contains(&jobs[needed].id)), "{} needs {needed}", job.name());
        }
    }
    let short = |job: &Job| job.name().split_once("/ipc10/").unwrap().1.replace("-2of255", "").replace("-32of255", "");
    (jobs.iter().map(short).collect(), jobs.iter().map(|job| job.id.clone()).collect())
}

/// What matters most comes first: seed 0 of C2R and the backbone, AutoAttack on them, the other methods, the other seeds.
#[test]
fn the_headline_comes_in_the_order_in_which_it_matters() {
    let five = ["fgsm", "pgd", "cw-linf", "vmi-fgsm", "jitter"];
    let mut expected = Vec::new();
    for seed in 0..5 {
        for methods in [&["c2r", "class-mean"][..], &["aac", "crl", "c2r-plus", "rome"]] {
            for method in methods {
                expected.push(format!("{method}/seed{seed} distill"));
                for protocol in ["natural", "pgd-at"] {
                    expected.push(format!("{method}/seed{seed} train {protocol}"));
                    expected.extend(five.map(|attack| format!("{method}/seed{seed} attack {protocol}-{attack}")));
                }
            }
            for method in methods {
                for protocol in ["natural", "pgd-at"] {
                    expected.push(format!("{method}/seed{seed} attack {protocol}-autoattack-standard"));
                }
            }
        }
    }
    let (names, _) = headline("paper", &[], "", Shard::ALL);
    assert_eq!(names, expected);
    assert_eq!(headline("tiny", &[], "", Shard::ALL).0, names, "the rehearsal has the same commands");

    // Parts keep the order.
    let wanted = |name: &&String| name.contains("natural-pgd") || name.contains("natural-auto");
    let part = headline("paper", &[], "protocol=natural,attack=pgd,attack=autoattack-standard", Shard::ALL).0;
    let attacks = |names: &[String]| names.iter().filter(wanted).cloned().collect::<Vec<_>>();
    assert_eq!((part.len(), attacks(&part)), (30 * 4, attacks(&names)));
    // Shards are dealt in the order, so that with Slurm too the first tasks are those that matter most.
    let first = headline("paper", &[], "", "1/30".parse().unwrap()).0;
    assert_eq!(first.len(), 15);
    assert!(first.iter().all(|name| name.starts_with("c2r/seed0 ")), "{first:?}");
    let second = headline("paper", &[], "", "2/30".parse().unwrap()).0;
    assert!(second.iter().all(|name| name.starts_with("class-mean/seed0 ")), "{second:?}");
    // Other seeds come in the order in which they are named.
    let other = headline("paper", &[7, 3], "", Shard::ALL).0;
    assert_eq!((&*other[0], &*other[90]), ("c2r/seed7 distill", "c2r/seed3 distill"));
}

/// On generated images every command of the scale paper is run, for one subset, size and seed.
#[test]
fn the_rehearsal_of_the_imagenet_subsets_leaves_no_command_out() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = read_experiment(&repository(folder.path()).root, "imagenet-subsets").unwrap().experiment;
    let [tiny, paper] = ["tiny", "paper"].map(|name| experiment.scale(name).unwrap());
    assert_eq!((&tiny.methods, &tiny.protocols), (&paper.methods, &paper.protocols));
    assert_eq!(tiny.attacks, paper.attacks);
    let options =
        |sets: &[String]| -> Vec<String> { sets.iter().map(|set| set.split('=').next().unwrap().to_owned()).collect() };
    assert_eq!(options(&tiny.attack_set), options(&paper.attack_set));
}

/// What `headline` runs, `table2` and `ablation` have run, and the other way round.
#[test]
fn the_headline_shares_its_commands_with_the_tables() {
    let (_, ids) = headline("paper", &[], "", Shard::ALL);
    assert_eq!(ids.len(), 6 * 5 * 15);
    let folder = tempfile::tempdir().unwrap();
    let place = repository(folder.path());
    let datasets = datasets(&place);
    let mut shared = BTreeSet::new();
    for name in ["table2", "ablation"] {
        let experiment = read_experiment(&place.root, name).unwrap().experiment;
        let grid = Grid {
            experiment: &experiment,
            scale: experiment.scale("paper").unwrap(),
            place: &place,
            datasets: &datasets,
        };
        shared.extend(grid.whole().unwrap().jobs.into_iter().map(|job| job.id));
    }
    assert!(ids.is_subset(&shared));
}
