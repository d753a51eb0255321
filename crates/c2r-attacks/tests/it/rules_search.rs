//! Rules of Square, FAB and CW-L2, on networks of a few pixels; the values are derived by hand.

use std::cell::{Cell, RefCell};

use c2r_attacks::{AttackBatch, SquareConfig, replay};
use c2r_base::{
    Classifier, ClassifierError, Goal, LabelledImages, Norm, Seed, TargetRule, ThreatModel, grad::GradientError, loss,
};
use c2r_testkit::{
    max_difference,
    toys::{self, Linear},
};
use tch::{Device, Kind, Tensor};

use crate::{
    rules::proposal,
    support::{Recorder, config, function, rows_of_pixels, threat},
};

fn label_0(images: Tensor) -> LabelledImages {
    let n = images.size()[0];
    LabelledImages::new(images, Tensor::zeros([n], (Kind::Int64, Device::Cpu))).unwrap()
}

/// Every query changes a window of the image with the least margin so far (two windows in L2 and L1), stays in the ball,
/// and the last such image is returned. Windows of a tenth of 8 x 8 pixels have a side of 3, of 2 after query 10 and of
/// 1 after query 50. In L2 and L1, a side is never less than 3.
#[test]
fn square_goes_on_from_the_least_margin_so_far_and_stays_in_the_ball() {
    // Far from every boundary, so that the search goes on.
    let (linear, ahead) = (Linear::mixed(3, [1, 8, 8]), Tensor::from_slice(&[3.0f32, 0.0, 0.0]));
    let model = function(|x| linear.logits(x) + &ahead);
    let images = (toys::images(3, [1, 8, 8]) - 0.5) * 0.2 + 0.5;
    for (norm, epsilon) in [(Norm::Linf, 0.03), (Norm::L2, 0.2), (Norm::L1, 0.6)] {
        for sample in 0..3 {
            let one = label_0(images.narrow(0, sample, 1));
            let recorder = Recorder::new(&model);
            let attack = config("square", &[("queries", "90"), ("p-init", "0.1")]).build().unwrap();
            let found = proposal(attack.as_ref(), &recorder, &one, &threat(norm, epsilon)).images;
            let asked = recorder.asked();
            assert_eq!(asked.len(), 91);
            let margin = |x: &Tensor| loss::margin(&model.logits(x).unwrap(), one.labels()).double_value(&[0]);
            let mut best = asked[0].shallow_clone();
            let (mut n_better, mut largest) = (0, [0; 3]);
            for (query, candidate) in asked[1..].iter().enumerate() {
                let what = format!("{norm}, sample {sample}, query {query}");
                let length = norm.distance(candidate, one.images()).double_value(&[0]);
                assert!(length <= epsilon + 1e-6, "{what}: {length} instead of {epsilon}");
                let changed = (candidate - &best).abs().gt(1e-5).view([8, 8]);
                let n_changed = changed.sum(Kind::Int64).int64_value(&[]);
                let lines = |axis: i64| {
                    let at = Vec::<i64>::try_from(changed.any_dim(axis, false).nonzero().view(-1)).unwrap();
                    at.last().map_or(0, |last| last - at[0] + 1)
                };
                if norm == Norm::Linf {
                    let stage = [10, 50].iter().filter(|&&after| query > after).count();
                    let side = lines(0).max(lines(1));
                    assert!(side <= [3, 2, 1][stage], "{what}: {side} pixels");
                    largest[stage] = largest[stage].max(side);
                } else {
                    assert!(n_changed <= 18, "{what}: {n_changed} pixels changed");
                }
                if margin(candidate) < margin(&best) {
                    best = candidate.shallow_clone();
                    n_better += 1;
                }
            }
            assert!((3..60).contains(&n_better), "{norm}, sample {sample}: {n_better} of 90 are better");
            assert!(norm != Norm::Linf || largest == [3, 2, 1], "{largest:?}");
            assert_eq!(max_difference(&found, &best), 0.0, "{norm}, sample {sample}");
        }
    }
}

/// Algorithm 3 of Andriushchenko et al. 2020 (arXiv:1912.00049), and the same with sums for squares in L1 (AutoAttack's
/// code), for two channels of 6 x 6 pixels: the start changes each pixel equally, down in channel 0 and up in channel 1.
/// Channel 0 is black, so that nothing is left of its change. The first window is at the upper left, the second one at
/// the lower right.
#[test]
fn square_moves_the_length_of_two_windows_into_the_first() {
    let clean = Tensor::cat(
        &[
            Tensor::zeros([1, 1, 6, 6], (Kind::Float, Device::Cpu)),
            Tensor::full([1, 1, 6, 6], 0.4, (Kind::Float, Device::Cpu)),
        ],
        1,
    );
    let epsilon = 0.5;
    let batch = AttackBatch { images: &clean, labels: &Tensor::from_slice(&[0i64]), ids: &[0], targets: None };
    let model = Linear::new(Tensor::zeros([2, 72], (Kind::Float, Device::Cpu)), Tensor::from_slice(&[1.0f32, 0.0]));
    for norm in [Norm::L2, Norm::L1] {
        // The pattern of one pixel is -1.
        let start_signs = Tensor::from_slice(&[1.0f32, -1.0, -1.0]).view([1, 3]);
        let signs = [[-1.0, 1.0], [1.0, 1.0]].map(Vec::from).to_vec();
        let mut draws = replay::SquareDraws::recorded(start_signs, vec![(0, 0), (3, 3)], signs);
        let square = SquareConfig { queries: 1, p_init: 0.1, ..SquareConfig::default() };
        let recorder = Recorder::new(&model);
        replay::square(&square, &recorder, &batch, &threat(norm, epsilon), &mut draws).unwrap();
        let [start, candidate] = recorder.asked().try_into().unwrap();
        // L2: both channels had half of the squares. L1: channel 1 has all of the length.
        let pixel = if norm == Norm::L2 { epsilon / 72f64.sqrt() } else { epsilon / 36.0 };
        let delta = clean.zeros_like();
        let _ = delta.select(1, 1).fill_(pixel);
        assert!(max_difference(&(&clean + &delta), &start) < 1e-6, "{norm}: the start");

        let length = |x: &Tensor| if norm == Norm::L2 { x.norm() } else { x.abs().sum(Kind::Float) };
        let pattern = replay::square_window(3);
        // Channel 0 had nothing there; channel 1 had nine equal values, which have length 1 together.
        let old =
            Tensor::full([3, 3], if norm == Norm::L2 { 1.0 / 3.0 } else { 1.0 / 9.0 }, (Kind::Float, Device::Cpu));
        let new = [-&pattern, &pattern + old];
        // L2: the two windows have 18 of 72 pixels, a quarter of epsilon^2, and half of what channel 0 left unused is
        // another. L1: they have half of epsilon, for each of two channels.
        let share = if norm == Norm::L2 { 0.5f64.sqrt() * epsilon } else { epsilon };
        for (channel, new) in new.iter().enumerate() {
            let channel = delta.select(1, channel as i64).squeeze_dim(0);
            let _ = channel.narrow(0, 3, 3).narrow(1, 3, 3).fill_(0.0);
            channel.narrow(0, 0, 3).narrow(1, 0, 3).copy_(&(new / length(new) * share));
        }
        let expected = match norm {
            Norm::L2 => (&clean + &delta * epsilon / length(&delta)).clamp(0.0, 1.0),
            norm => norm.project(&clean, &(&clean + &delta), epsilon),
        };
        let off = max_difference(&expected, &candidate);
        assert!(off < 1e-5, "{norm}: {off}, {candidate} instead of {expected}");
    }
}

/// One pixel; class 0 wins by 1 - 4 (x - 0.2) up to x = 0.4 and by 0.6 - x beyond. Croce & Hein 2020 (arXiv:1907.02044),
/// algorithm 1, with eta = 1.05, alpha_max = 0.1 and beta = 0.9:
///
/// 1. The linearized boundary of 0.2 is 0.45, from the point and from the clean image: x = 0.2 + 1.05 * 0.25 = 0.4625,
///    which is not adversarial.
/// 2. From there on the boundary is 0.6. d1 = 0.1375, d2 = 0.4, and d1 / (d1 + d2) = 0.256 is more than alpha_max: x =
///    0.9 * (0.4625 + 1.05 * 0.1375) + 0.1 * (0.2 + 1.05 * 0.4) = 0.608188 is adversarial. Back to 0.2 + 0.9 * 0.408188
///    = 0.567369.
/// 3. d1 = 0.032631, a = 0.075426: x = 0.603017, adversarial and nearer. Back to 0.562715.
/// 4. d1 = 0.037285, a = 0.085264: x = 0.603411, adversarial and farther.
///
/// With one pixel the three norms are one.
#[test]
fn fab_by_hand() {
    let model = function(|x| {
        let x = x.select(1, 0);
        let margin: Tensor = (&x - 0.2) * -4.0 + 1.0 + (&x - 0.4).relu() * 3.0;
        Tensor::stack(&[&margin, &margin.zeros_like()], 1)
    });
    for norm in [Norm::Linf, Norm::L2, Norm::L1] {
        let recorder = Recorder::new(&model);
        let attack = config("fab", &[("steps", "4")]).build().unwrap();
        let found = proposal(attack.as_ref(), &recorder, &label_0(rows_of_pixels(&[[0.2]])), &threat(norm, 0.7)).images;
        // Each step asks for the gradient where it starts, and judges where it ends.
        let asked = Tensor::cat(&recorder.asked(), 0).view(-1);
        let expected = [0.2, 0.4625, 0.4625, 0.608_188, 0.567_369, 0.603_017, 0.562_715, 0.603_411];
        assert!(max_difference(&asked, &Tensor::from_slice(&expected.map(|x| x as f32))) < 3e-6, "{norm}: {asked}");
        assert!((found.double_value(&[0, 0, 0, 0]) - 0.603_017).abs() < 3e-6, "{norm}: {found}");
    }
}

/// Logits (1, 0.9 + (x_0 - 0.5) / 4, 0.5 + 2.5 (x_1 - 0.5)): class 1 is likelier in the middle, but 0.4 away along pixel
/// 0, and class 2 0.2 along pixel 1. The likeliest class comes first; of several, the nearest image is returned.
#[test]
fn fab_t_walks_to_the_likely_classes_and_keeps_the_nearest() {
    let weight = Tensor::from_slice(&[0.0f32, 0.0, 0.25, 0.0, 0.0, 2.5]).view([3, 2]);
    let model = Linear::new(weight, Tensor::from_slice(&[1.0f32, 0.775, -0.75]));
    for norm in [Norm::Linf, Norm::L2, Norm::L1] {
        for (targets, nearest) in [("1", [0.92, 0.5]), ("2", [0.5, 0.71])] {
            let recorder = Recorder::new(&model);
            let attack = config("fab-t", &[("steps", "1"), ("targets", targets)]).build().unwrap();
            let data = label_0(rows_of_pixels(&[[0.5, 0.5]]));
            let found = proposal(attack.as_ref(), &recorder, &data, &threat(norm, 0.9)).images;
            // The pass that chooses the classes, the gradients and the judgement: eta = 1.05 times the way to each boundary.
            let judged = &recorder.asked()[2];
            let all = rows_of_pixels(&[[0.92, 0.5], [0.5, 0.71]]).narrow(0, 0, targets.parse().unwrap());
            assert!(max_difference(judged, &all) < 1e-5, "{norm}: {judged}");
            assert!(max_difference(&found, &rows_of_pixels(&[nearest])) < 1e-5, "{norm}, {targets}: {found}");
        }
    }
}

/// Logits (0, 10 (x - 0.7), 5 (x - 0.6)): the label wins up to 0.6, class 2 up to 0.8, and then the target, class 1. Where the
/// target passes the label, at 0.7, class 2 is ahead of both, and no image there reaches the goal.
///
/// 1. At 0.5 the label is the target's rival, at a boundary of 0.7: x = 0.5 + 1.05 * 0.2 = 0.71, which is of class 2.
/// 2. There class 2 is, at a boundary of 0.8. d1 = 0.09, d2 = 0.3, and d1 / (d1 + d2) = 0.231 is more than alpha_max: x = 0.9 *
///    (0.71 + 1.05 * 0.09) + 0.1 * (0.5 + 1.05 * 0.3) = 0.80555 reaches it.
#[test]
fn fab_with_a_target_walks_to_where_the_target_is_ahead_of_every_class() {
    let weight = Tensor::from_slice(&[0.0f32, 10.0, 5.0]).view([3, 1]);
    let model = Linear::new(weight, Tensor::from_slice(&[0.0f32, -7.0, -3.0]));
    let (data, targets) = (label_0(rows_of_pixels(&[[0.5]])), Tensor::from_slice(&[1i64]));
    let batch = AttackBatch { images: data.images(), labels: data.labels(), ids: &[0], targets: Some(&targets) };
    for norm in [Norm::Linf, Norm::L2, Norm::L1] {
        let threat = ThreatModel { goal: Goal::Targeted(TargetRule::Next), ..threat(norm, 0.7) };
        for name in ["fab", "fab-t"] {
            let attack = config(name, &[("steps", "2")]).build().unwrap();
            let found = attack.perturb(&model, &batch, &threat, Seed::new(0)).unwrap().images;
            assert!((found.double_value(&[0, 0, 0, 0]) - 0.80555).abs() < 1e-5, "{name}, {norm}: {found}");
        }
    }
}

/// A model of one image whose second answer in each round of two says whether the round succeeds, and that sees the losses.
struct Rounds {
    succeed: &'static [bool],
    n_asked: Cell<usize>,
    losses: RefCell<Vec<f64>>,
}

impl Classifier for Rounds {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        let asked = self.n_asked.replace(self.n_asked.get() + 1);
        let margin = if asked % 2 == 1 && self.succeed[asked / 2] { -1.0 } else { 1.0 };
        let zero = images.flatten(1, -1).select(1, 0) * 0.0;
        Ok(Tensor::stack(&[&zero + margin, zero], 1))
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn gradient(&self, scalar: &Tensor, images: &Tensor, _: bool) -> Result<Tensor, GradientError> {
        self.losses.borrow_mut().push(scalar.double_value(&[]));
        Ok(images.zeros_like())
    }
}

/// Carlini & Wagner's code: c grows tenfold until a round succeeds. A success is the upper end and a failure the lower
/// end, and the next c is half way between them. The margin is 1 and the distance 0 when a round begins, so its first
/// loss is c.
#[test]
fn cw_l2_grows_c_until_success_and_bisects_afterwards() {
    let succeed = &[false, false, true, false, true, true, false, true];
    let model = Rounds { succeed, n_asked: Cell::default(), losses: RefCell::default() };
    let attack = config("cw-l2", &[("c", "0.01"), ("steps", "2"), ("search-steps", "7")]).build().unwrap();
    proposal(attack.as_ref(), &model, &label_0(rows_of_pixels(&[[0.5]])), &threat(Norm::L2, 0.4));
    let got: Vec<f64> = model.losses.take().into_iter().step_by(2).collect();
    // Between 0.1 and 1, 0.55 and 1, 0.55 and 0.775, 0.55 and 0.6625, 0.60625 and 0.6625.
    let expected = [0.01, 0.1, 1.0, 0.55, 0.775, 0.6625, 0.606_25, 0.634_375];
    assert!(got.len() == 8 && got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}");
}

/// Class 0 wins left of 0.76, and the confidence pushes on. With c = 1 Adam's points are 0.5, 0.65, 0.765, .. and with
/// 0.5, in the next round, 0.5, 0.65, 0.757, 0.82, ..: the nearest image that reaches the goal is neither the last one
/// of its round nor of the last round.
#[test]
fn cw_l2_keeps_the_nearest_image_of_all_rounds() {
    let model = function(|x| {
        let x = x.select(1, 0);
        Tensor::stack(&[x.full_like(0.76), x], 1)
    });
    let recorder = Recorder::new(&model);
    let options = [("lr", "0.3"), ("kappa", "10"), ("steps", "5"), ("search-steps", "1")];
    let attack = config("cw-l2", &options).build().unwrap();
    let found = proposal(attack.as_ref(), &recorder, &label_0(rows_of_pixels(&[[0.5]])), &threat(Norm::L2, 0.5)).images;
    let asked: Vec<f64> = recorder.asked().iter().map(|x| x.double_value(&[0, 0, 0, 0])).collect();
    assert_eq!(found.double_value(&[0, 0, 0, 0]), asked[2], "{asked:?}");
    assert!(asked[2] > 0.76 && asked[7] < 0.76 && asked[8] > asked[2], "{asked:?}");
}
