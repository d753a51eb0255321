//! What an attack says that it costs, against what it takes on a model that it cannot break.

use c2r_attacks::{ATTACKS, AttackBatch, AttackConfig};
use c2r_base::{Classifier, Goal, Norm, Seed, TargetRule, ThreatModel};
use c2r_testkit::toys;
use tch::{Device, Kind, Tensor};

use crate::{properties::SHAPE, support::threat};

const N: i64 = 3;

/// Smooth logits of which the first stays the largest and the last the smallest.
fn unbreakable(classes: i64) -> impl Classifier {
    toys::function(move |images| {
        let values = images.flatten(1, -1);
        let weight = toys::images(1, [1, values.size()[1], classes]).view([-1, classes]) - 0.5;
        let margin = Tensor::zeros([classes], (Kind::Float, Device::Cpu));
        let _ = margin.get(0).fill_(100.0);
        let _ = margin.get(classes - 1).fill_(-100.0);
        values.matmul(&weight).tanh() + margin
    })
}

/// Few steps, but two attempts where there are restarts.
fn short(name: &str) -> AttackConfig {
    let mut config: AttackConfig = name.parse().unwrap();
    for (option, value) in [
        ("steps", "7"),
        ("queries", "9"),
        ("restarts", "2"),
        ("search-steps", "1"),
        ("neighbours", "3"),
        ("targets", "6"),
    ] {
        if config.has_option(option) {
            config.set(option, value).unwrap();
        }
    }
    config
}

#[test]
fn attacks_take_the_passes_that_they_say() {
    let images = toys::images(N, SHAPE);
    let (labels, last) = (Tensor::zeros([N], (Kind::Int64, Device::Cpu)), |classes| {
        Tensor::full([N], classes - 1, (Kind::Int64, Device::Cpu))
    });
    let ids: Vec<u64> = (0..N as u64).collect();
    let mut n_compared = 0;
    for classes in [4, 10] {
        let (model, targets) = (unbreakable(classes), last(classes));
        for (name, norm) in ATTACKS.iter().flat_map(|name| [Norm::Linf, Norm::L2, Norm::L1].map(|norm| (name, norm))) {
            let config = short(name);
            let attack = config.build().unwrap();
            for goal in [Goal::Untargeted, Goal::Targeted(TargetRule::LeastLikely)] {
                let threat = ThreatModel { goal, ..threat(norm, 0.05) };
                if attack.check(&threat, classes).is_err() {
                    continue;
                }
                let targets = (goal != Goal::Untargeted).then_some(&targets);
                let batch = AttackBatch { images: &images, labels: &labels, ids: &ids, targets };
                let found = attack.perturb(&model, &batch, &threat, Seed::new(3)).unwrap();
                let said = config.passes(&threat, classes as u64);
                let what = format!("{name} {norm} {goal:?} {classes}");
                assert_eq!(found.passes.forward_images, N as u64 * said.forward_images, "{what}: forward");
                assert_eq!(found.passes.backward_images, N as u64 * said.backward_images, "{what}: backward");
                assert!(
                    found.queries.iter().all(|queries| *queries == said.forward_images),
                    "{what}: {:?}",
                    found.queries
                );
                n_compared += 1;
            }
        }
    }
    assert!(n_compared > 100, "{n_compared}");
}
