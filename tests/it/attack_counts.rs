//! What attacks cost besides the model: operators, values read and tensors copied, per step. The numbers are those of a GPU.

use c2r_attacks::{Attack, AttackBatch, AttackConfig, EvaluateOptions, Mode, evaluate};
use c2r_base::{Classifier, LabelledImages, Norm, Seed, ThreatModel};
use c2r_kernels::count::{self, Counts};
use c2r_testkit::toys;
use tch::{Device, Kind, Tensor};

const N: i64 = 12;
const CLASSES: i64 = 10;
const SHAPE: [i64; 3] = [3, 8, 8];

/// Fixed numbers without structure in `[0, 1)`.
fn noise(shape: &[i64]) -> Tensor {
    let n: i64 = shape.iter().product();
    (Tensor::arange(n, (Kind::Float, Device::Cpu)) * 0.754_877_666).frac().view(shape)
}

fn weight() -> Tensor {
    noise(&[SHAPE.iter().product(), CLASSES]) - 0.5
}

/// `x W`: two operators forward.
fn model() -> impl Classifier {
    let weight = weight();
    toys::function(move |images| images.flatten(1, -1).matmul(&weight))
}

fn data(model: &impl Classifier) -> LabelledImages {
    let images = noise(&[N, SHAPE[0], SHAPE[1], SHAPE[2]]) * 0.8 + 0.1;
    let labels = model.logits(&images).unwrap().argmax(1, false);
    LabelledImages::new(images, labels).unwrap()
}

/// So small a ball that no image is broken, unless another is given.
fn threat(norm: Norm, epsilon: &str) -> ThreatModel {
    ThreatModel::untargeted(norm, epsilon.parse().unwrap())
}

fn attack(name: &str, options: &[(&str, &str)]) -> Box<dyn Attack> {
    let mut config: AttackConfig = name.parse().unwrap();
    for (option, value) in options {
        config.set(option, value).unwrap();
    }
    config.build().unwrap()
}

fn whole(name: &str, options: &[(&str, &str)], threat: &ThreatModel) -> Counts {
    let model = model();
    let data = data(&model);
    let ids: Vec<u64> = (0..N as u64).collect();
    let batch = AttackBatch { images: data.images(), labels: data.labels(), ids: &ids, targets: None };
    let attack = attack(name, options);
    count::during(Device::Cpu, || attack.perturb(&model, &batch, threat, Seed::new(1)).unwrap()).1
}

/// What a step costs: 40 more of them, divided by 40.
fn per_step(name: &str, steps: &str, options: &[(&str, &str)], norm: Norm) -> [f64; 3] {
    let run = |n: &str| whole(name, &[options, &[(steps, n)]].concat(), &threat(norm, "0.0001"));
    let (few, many) = (run("40"), run("80"));
    let each = |of: fn(&Counts) -> u64| (of(&many) - of(&few)) as f64 / 40.0;
    [each(|counts| counts.calls), each(|counts| counts.reads), each(|counts| counts.copies)]
}

#[test]
fn steps_of_attacks_stay_below_their_limits() {
    let fab = [("minimize", "false")];
    // Calls include about 20 of the model, its loss and their gradient; FAB asks the model twice. VMI-FGSM adds five neighbours.
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Norm, [f64; 3]);
    let limits: [Case<'_>; 9] = [
        ("pgd", "steps", &[], Norm::Linf, [40.0, 0.0, 0.0]),
        ("pgd", "steps", &[("early-stop", "true")], Norm::Linf, [50.0, 0.11, 0.0]),
        ("mi-fgsm", "steps", &[], Norm::Linf, [70.0, 0.0, 0.0]),
        ("vmi-fgsm", "steps", &[("neighbours", "5")], Norm::Linf, [130.0, 0.0, 0.05]),
        ("jitter", "steps", &[], Norm::Linf, [75.0, 0.0, 0.0]),
        ("apgd-ce", "steps", &[], Norm::Linf, [75.0, 0.11, 0.0]),
        ("fab-t", "steps", &fab, Norm::Linf, [260.0, 0.11, 0.0]),
        ("square", "queries", &[], Norm::Linf, [50.0, 0.11, 0.3]),
        ("square", "queries", &[], Norm::L2, [110.0, 0.11, 0.3]),
    ];
    for (name, steps, options, norm, limit) in limits {
        let found = per_step(name, steps, options, norm);
        for (what, (found, limit)) in ["calls", "reads", "copies"].into_iter().zip(found.into_iter().zip(limit)) {
            assert!(found <= limit, "{name} {norm}: {found} {what} per step, at most {limit}");
        }
    }
}

/// Nothing is read before the attack is over, and noise goes up once.
#[test]
fn pgd_reads_once() {
    let counts = whole("pgd", &[("steps", "10")], &threat(Norm::Linf, "8/255"));
    assert_eq!((counts.reads, counts.copies), (1, 1), "{counts:?}");
}

/// Reads and copies for each pass of a whole evaluation, of which Square is most; half of the images are broken on the way.
#[test]
fn autoattack_reads_every_few_passes() {
    let (model, weight) = (model(), weight());
    let data = data(&model);
    let attacks = [attack("autoattack-standard", &[("queries", "400")])];
    let options = EvaluateOptions { mode: Mode::Each, workers: 1, self_check: false, ..EvaluateOptions::default() };
    // Linf: a class wins over the label at the radius of the difference of logits over the L1 norm of the difference of weights.
    let logits = model.logits(data.images()).unwrap();
    let radius = |image: i64| {
        let label = data.labels().int64_value(&[image]);
        let others = (0..CLASSES).filter(|&class| class != label);
        let of = |class: i64| {
            let gap = logits.double_value(&[image, label]) - logits.double_value(&[image, class]);
            gap / (weight.select(1, label) - weight.select(1, class)).abs().sum(Kind::Double).double_value(&[])
        };
        others.map(of).fold(f64::INFINITY, f64::min)
    };
    let mut radii: Vec<f64> = (0..N).map(radius).collect();
    radii.sort_by(f64::total_cmp);
    let middle = (radii[N as usize / 2 - 1] + radii[N as usize / 2]) / 2.0;
    let threat = threat(Norm::Linf, &middle.to_string());
    let (report, counts) = count::during(Device::Cpu, || evaluate(&model, &data, &attacks, &threat, &options).unwrap());
    let robust = report.robust_accuracy();
    assert_eq!(robust, 0.5);
    let passes = report.counts().forward_calls as f64;
    let [calls, reads, copies] = [counts.calls, counts.reads, counts.copies].map(|n| n as f64 / passes);
    assert!(calls <= 90.0 && reads <= 0.2 && copies <= 0.4, "{calls} {reads} {copies}");
}
