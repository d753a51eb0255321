//! What a step of each loop asks of libtorch and of the bus between host and device. These numbers are the same on every
//! machine, so a limit that holds here holds on a GPU.

use c2r_base::Seed;
use c2r_distill::{DistillConfig, Distillation};
use c2r_kernels::count::{self, Counts};
use c2r_models::Model;
use c2r_train::{Length, Protocol, Targets, TrainSource, Trainer, model_input};
use tch::Device;
use toml::Value;

use super::digits;

/// Of `n` steps: each one's operators, and what they read and copied together.
fn counted(n: usize, mut step: impl FnMut()) -> (Vec<u64>, Counts) {
    let each: Vec<Counts> = (0..n).map(|_| count::during(Device::Cpu, &mut step).1).collect();
    let total = |of: fn(&Counts) -> u64| each.iter().map(of).sum();
    let total = Counts {
        calls: total(|counts| counts.calls),
        reads: total(|counts| counts.reads),
        copies: total(|counts| counts.copies),
        copied_bytes: total(|counts| counts.copied_bytes),
    };
    (each.iter().map(|counts| counts.calls).collect(), total)
}

/// 200 steps of 256 digits, which the device keeps, 6 to an epoch.
fn training(protocol: Protocol, attack_steps: u32) -> (Vec<u64>, Counts) {
    let mut config = protocol.config();
    config.length = Length::Steps(1000);
    if let Some(adversarial) = &mut config.adversarial {
        adversarial.steps = attack_steps;
    }
    let spec = "ConvNet-D3-W8-IN".parse().unwrap();
    let mut model = Model::new(&spec, &model_input(&digits().spec), Seed::new(0), Device::Cpu).unwrap();
    let source = TrainSource::of_split(&digits().train, Targets::Hard).keeping(usize::MAX);
    let mut trainer = Trainer::new(&mut model, &source, &config, Seed::new(0)).unwrap();
    counted(200, || assert!(trainer.step().unwrap().is_some()))
}

#[test]
fn a_training_step_is_few_operators_and_waits_for_nothing() {
    let (natural, total) = training(Protocol::Natural, 0);
    let most = natural.iter().max();
    assert!(most <= Some(&150), "{most:?} operators");
    // Losses are read every 50 steps. The order of an epoch is sent once, augmentation for 64 steps at once.
    assert_eq!((total.reads, total.copies), (4, 200_u64.div_ceil(6) + 4));

    let [one, five] = [1, 5].map(|steps| training(Protocol::PgdAt, steps));
    let per_attack_step = five.0.iter().zip(&one.0).map(|(five, one)| (five - one).div_ceil(4)).max();
    assert!(per_attack_step <= Some(60), "{per_attack_step:?} operators");
    let most = one.0.iter().max();
    assert!(most <= Some(&(150 + 60)), "{most:?} operators with one attack step");
    // The starts of 64 attacks are sent together.
    assert_eq!((five.1.reads, five.1.copies), (4, total.copies + 4));
}

/// A profile on the digits with a network of width 8: training steps of the preparation, operators of updates, and what 50
/// updates with 5 reports read and copy.
fn distillation(profile: &str, changes: &[(&str, Value)]) -> (Vec<Counts>, Vec<u64>, Counts) {
    let mut all: Vec<(&str, Value)> = vec![
        ("model", "ConvNet-D3-W8-IN".into()),
        ("iterations", 60.into()),
        ("threat.epsilon", "32/255".into()),
        ("pool.trajectories", 1.into()),
        ("pool.min-steps", 10.into()),
        ("pool.max-steps", 100.into()),
        ("matching.real-per-class", 64.into()),
    ];
    all.extend(changes.iter().cloned());
    let config = DistillConfig::resolve(profile, &digits().spec, all).unwrap();
    let mut run = Distillation::new(config, digits(), Device::Cpu).unwrap();
    run.keep(usize::MAX);
    let mut prepared = Vec::new();
    while run.iteration() == 0 {
        prepared.push(count::during(Device::Cpu, || run.step().map(|_| ()).unwrap()).1);
    }
    prepared.pop();
    let (updates, total) = counted(50, || {
        run.step().unwrap();
        if run.iteration().is_multiple_of(10) {
            run.report().unwrap();
        }
    });
    (prepared, updates, total)
}

#[test]
fn an_update_is_few_operators_and_is_read_where_it_is_reported() {
    let trajectories = || {
        vec![
            ("experts.count", 1.into()),
            ("experts.epochs", 2.into()),
            ("student.max-start", 1.into()),
            ("student.span", 1.into()),
            ("student.steps", 5.into()),
        ]
    };
    let pgd = "companions = { attack = 'pgd', steps = 2, rel-step-size = 0.5, random-start = true }";
    let pgd = toml::from_str::<toml::Table>(pgd).unwrap().remove("companions").unwrap();
    let mut found = Vec::new();
    for (profile, changes, most_prepared, most, reads, copies) in [
        ("faithful", vec![], 320, 1000, 20, 40),
        ("faithful", vec![("companions", pgd)], 350, 1100, 20, 200),
        ("dm", vec![], 0, 600, 20, 1000),
        ("dc", vec![("gradients.outer", 1.into())], 0, 4000, 20, 1000),
        ("mtt", trajectories(), 250, 2000, 20, 200),
        ("mat", trajectories(), 550, 2000, 20, 200),
    ] {
        let (prepared, updates, total) = distillation(profile, &changes);
        // Where networks are trained, the loss is read now and then, and the scores of an epoch once.
        let waiting = prepared.iter().filter(|step| step.reads > 0).count() as u64;
        let limits = [most_prepared, prepared.len() as u64 / 5, most, reads, copies];
        let most_prepared = prepared.iter().map(|step| step.calls).max().unwrap_or(0);
        let got = [most_prepared, waiting, updates.into_iter().max().unwrap(), total.reads, total.copies];
        let within = got.iter().zip(limits).all(|(got, limit)| *got <= limit);
        found.push((profile, within, got, limits));
    }
    assert!(found.iter().all(|(_, within, ..)| *within), "{found:#?}");
}
