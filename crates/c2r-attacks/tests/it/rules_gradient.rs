//! Rules of the attacks that follow a gradient inside the ball, on networks of a few pixels; the values are derived by hand.

use c2r_attacks::{AttackBatch, replay};
use c2r_base::{Classifier, LabelledImages, Norm, Seed};
use tch::{Device, Kind, Tensor};

use crate::{
    rules::proposal,
    support::{Recorder, config, function, rows_of_pixels, threat},
};

/// A model on which the cross entropy of class 1 has the gradient of `f`: logits `(30 + f, 0)`, whose cross entropy is
/// `30 + f` up to e^-30.
fn ascending(f: impl Fn(&Tensor) -> Tensor) -> impl Classifier {
    function(move |x| {
        let f = f(x);
        Tensor::stack(&[&f + 30.0, f.zeros_like()], 1)
    })
}

fn of_class(class: i64, images: Tensor) -> LabelledImages {
    let n = images.size()[0];
    LabelledImages::new(images, Tensor::full([n], class, (Kind::Int64, Device::Cpu))).unwrap()
}

fn values(images: &Tensor) -> Vec<f64> {
    Vec::try_from(images.flatten(0, -1).to_kind(Kind::Double)).unwrap()
}

fn close(what: &str, got: &Tensor, expected: &[f64]) {
    let got = values(got);
    let is_close = got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(is_close, "{what}: {got:?} instead of {expected:?}");
}

/// Condition 1 of Croce & Hein 2020 with the `<=` of their code: a loss that stays the same did not rise, and a share of
/// exactly `rho` is too few. Two of these four steps rise.
#[test]
fn apgd_counts_rises_alone_and_a_share_of_rho_is_too_few() {
    let losses = Tensor::from_slice(&[0.5f32, 1.0, 1.0, 2.0, 1.0]).view([5, 1]);
    let oscillates = |rho: f64| replay::apgd_oscillates(&losses, rho).int64_value(&[0]) == 1;
    assert_eq!([0.49, 0.5, 0.51].map(oscillates), [false, true, true]);
}

/// Three classes and one pixel; class 0 wins right of 0.37. From the right end of the ball, 0.7, the loss rises to the
/// left, and the first step ends at the left end, 0.3. There class 1 wins (0.1 against 0), but the loss is smaller,
/// because class 2 falls: ln(1 + e^0.1) = 0.74 after ln(1 + 2 e^-0.4) = 0.85.
#[test]
fn apgd_returns_the_image_that_reached_the_goal_whatever_its_loss() {
    let model = function(|x| {
        let x = x.select(1, 0);
        let left = (&x - 0.5).clamp_max(0.0);
        Tensor::stack(&[x - 0.3, &left * -0.5, left * 150.0], 1)
    });
    let data = of_class(0, rows_of_pixels(&[[0.5]; 8]));
    for norm in [Norm::Linf, Norm::L2] {
        let recorder = Recorder::new(&model);
        let attack = config("apgd-ce", &[]).build().unwrap();
        let found = proposal(attack.as_ref(), &recorder, &data, &threat(norm, 0.2));
        let starts = values(&recorder.asked()[0]);
        assert!(starts.iter().any(|x| *x < 0.5) && starts.iter().any(|x| *x > 0.5), "{norm}: {starts:?}");
        close(&norm.to_string(), &found.images, &[0.3; 8]);
        // One pass for the start, and a second one if that does not reach the goal.
        let expected: Vec<u64> = starts.iter().map(|x| if *x < 0.5 { 1 } else { 2 }).collect();
        assert_eq!(found.queries, expected, "{norm}");
    }
}

/// The host learns of a success some passes later (it reads after the 8th and the 10th, not after the 9th). The row goes
/// on until then, to points of larger loss that do not reach the goal, and must not take them.
#[test]
fn apgd_keeps_the_image_that_reached_the_goal_until_it_is_read() {
    // Logits of class 1 and of three others near the peak; inside the window, if there is one, class 1 loses by little
    // to a fifth.
    let model = |window: Option<f64>| {
        function(move |x| {
            let x = x.select(1, 0);
            let inside = window.map_or_else(|| x.lt(0.0), |at| (&x - at).abs().lt(1e-3)).to_kind(Kind::Float);
            let others: Tensor = (&x - 0.7123).abs() * -20.0 - 0.1 - &inside * 30.0;
            Tensor::stack(&[&others, &x.zeros_like(), &others, &others, &(inside * 30.0 - 29.99)], 1)
        })
    };
    let mut n_late = 0;
    for clean in [0.61f32, 0.53, 0.83, 0.66, 0.58, 0.79] {
        let data = of_class(1, rows_of_pixels(&[[clean]]));
        let run = |model: &dyn Classifier| {
            let recorder = Recorder::new(model);
            let attack = config("apgd-ce", &[]).build().unwrap();
            let found = proposal(attack.as_ref(), &recorder, &data, &threat(Norm::Linf, 0.23));
            let asked: Vec<f64> = recorder.asked().iter().map(|x| x.double_value(&[0, 0, 0, 0])).collect();
            (found, asked)
        };
        let (_, free) = run(&model(None));
        // A point where the next one is the best so far, and which no earlier one is near.
        let off = |at: usize| (free[at] - 0.7123f64).abs();
        let is_late = |&at: &usize| {
            (0..=at).all(|before| off(at + 1) < off(before))
                && (0..free.len()).all(|other| other == at || (free[other] - free[at]).abs() > 2e-3)
        };
        for at in (8..40).filter(is_late) {
            let (found, asked) = run(&model(Some(free[at])));
            assert_eq!((found.queries[0], &asked[..=at]), (at as u64 + 1, &free[..=at]), "pixel {clean}");
            close(&format!("pixel {clean}, pass {at} of {}", asked.len()), &found.images, &[free[at]]);
            n_late += usize::from(asked.len() > at + 1);
        }
    }
    assert!(n_late > 0, "each success was read at once, which shows little");
}

/// Steps of 0.04 from 0.2; only the ninth point, 0.52, reaches the goal (by a class without gradient). The tenth one is
/// taken before the host reads, and does not count.
#[test]
fn an_early_stop_keeps_the_image_that_reached_the_goal_until_it_is_read() {
    let model = function(|x| {
        let x = x.select(1, 0);
        let inside = (&x - 0.52).abs().lt(0.01).to_kind(Kind::Float);
        Tensor::stack(&[x.zeros_like(), inside * 2.0 - 1.0, x * 0.4 - 0.5], 1)
    });
    let data = of_class(0, rows_of_pixels(&[[0.2]]));
    for name in ["bim", "pgd", "mi-fgsm", "cw-linf"] {
        let mut options = vec![("steps", "14"), ("step-size", "0.04"), ("early-stop", "true")];
        options.extend(["pgd", "cw-linf"].contains(&name).then_some(("random-start", "false")));
        let found = proposal(config(name, &options).build().unwrap().as_ref(), &model, &data, &threat(Norm::Linf, 0.6));
        close(name, &found.images, &[0.52]);
        assert_eq!(found.queries, [9], "{name}");
    }
}

/// Class 0 wins left of x = 0.55 only, and a step is 0.1. The loss pushes until the other class wins by kappa, with a
/// target and without.
#[test]
fn the_cw_loss_pushes_until_the_margin_is_kappa() {
    let model = function(|x| {
        let x = x.select(1, 0);
        Tensor::stack(&[x.full_like(0.55), x], 1)
    });
    let (images, labels) = (rows_of_pixels(&[[0.5]]), Tensor::from_slice(&[0i64]));
    let target = Tensor::from_slice(&[1i64]);
    for targets in [None, Some(&target)] {
        let batch = AttackBatch { images: &images, labels: &labels, ids: &[0], targets };
        // Margins after each step: 0.05, 0.15, 0.25.
        for (kappa, end) in [("0", 0.6), ("0.1", 0.7), ("50", 0.8)] {
            let options = [("steps", "3"), ("step-size", "0.1"), ("random-start", "false"), ("kappa", kappa)];
            let attack = config("cw-linf", &options).build().unwrap();
            let found = attack.perturb(&model, &batch, &threat(Norm::Linf, 0.4), Seed::new(3)).unwrap();
            close(&format!("kappa {kappa}, {targets:?}"), &found.images, &[end]);
        }
    }
}

/// Pixel 0 decides: class 0 wins left of 0.55, in a ball that ends at 0.7. The image of the first target that is reached
/// is returned, of several that are in the same pass that of the likeliest, and where none is reached, the likeliest's.
#[test]
fn apgd_t_returns_the_image_of_the_first_target_that_is_reached() {
    let model = |ahead: f64| {
        function(move |x| {
            let x = x.select(1, 0);
            let own = &x * -1.0 + 0.55 + ahead;
            Tensor::stack(&[own, x.zeros_like(), x.full_like(-0.01), x.full_like(-0.02)], 1)
        })
    };
    let data = of_class(0, rows_of_pixels(&[[0.5, 0.5]; 12]));
    let run = |ahead: f64| {
        let model = model(ahead);
        let recorder = Recorder::new(&model);
        let attack = config("apgd-t", &[("steps", "1")]).build().unwrap();
        let found = proposal(attack.as_ref(), &recorder, &data, &threat(Norm::Linf, 0.2)).images;
        (found, recorder.asked())
    };
    // The first pass was for the likely classes, and the second one had a start for each of three targets.
    let (found, asked) = run(0.0);
    let starts: Vec<Vec<f64>> = asked[1].unbind(0).iter().map(values).collect();
    let mut n_not_first = 0;
    for (sample, of_sample) in starts.chunks(3).enumerate() {
        let image = values(&found.get(sample as i64));
        match of_sample.iter().position(|start| start[0] > 0.55) {
            Some(first) => {
                assert_eq!(image, of_sample[first], "sample {sample}");
                n_not_first += usize::from(first > 0);
            }
            None => assert!(image[0] > 0.55, "sample {sample}: {image:?}"),
        }
    }
    assert!(n_not_first > 1, "{n_not_first}");
    let (found, asked) = run(10.0);
    for sample in 0..12 {
        let image = values(&found.get(sample));
        assert!([1, 2].iter().any(|pass| values(&asked[*pass].get(3 * sample)) == image), "sample {sample}");
    }
}

/// Factors of the loss below, falling, so that the first pixels always have the largest gradients, and where each of
/// them is best.
const FACTORS: [f32; 8] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3];
const TOPS: [f32; 8] = [0.9, 0.1, 0.7, 0.35, 0.8, 0.2, 0.6, 0.45];
const GREY: [f32; 8] = [0.5; 8];

/// The points of APGD in L1 for 200 steps, in order, its result, and how many checks find the best perturbation sparser
/// (the second number) or not. Croce & Hein 2021 (arXiv:2103.01208), algorithm 1 and sections 3.2 and 3.3, as in their code: `start` is the
/// first point. Only the loss is ours: the sum of `-factor |x - top|`.
fn apgd_l1_by_hand(epsilon: f64, start: &Tensor) -> (Vec<Vec<f32>>, Vec<f32>, [usize; 2]) {
    let pixels = |x: &Tensor| Vec::<f32>::try_from(x.view(-1)).unwrap();
    let project = |x: &[f32], radius: f64| {
        pixels(&Norm::L1.project(&rows_of_pixels(&[GREY]), &Tensor::from_slice(x).view([1, 1, 1, 8]), radius))
    };
    let loss = |x: &[f32]| -> f32 { (0..8).map(|i| -FACTORS[i] * (x[i] - TOPS[i]).abs()).sum() };
    let n_changed = |x: &[f32]| x.iter().filter(|value| **value != 0.5).count() as f32;
    let (mut asked, mut counts, mut best) = (Vec::new(), [0, 0], pixels(start));
    // Three phases of 30, 30 and 40 % of the steps; a check after every 4 % of a phase's, rounded down.
    for (radius, steps, every) in [(3.0 * epsilon, 60, 2), (2.0 * epsilon, 60, 2), (epsilon, 80, 3)] {
        let mut x = project(&best, radius);
        asked.push(x.clone());
        best = x.clone();
        let (mut step, mut n_before) = (radius as f32, n_changed(&x));
        let mut n_moved = (n_before / 1.5).ceil();
        for k in 1..=steps {
            for i in 0..n_moved as usize {
                x[i] += (TOPS[i] - x[i]).signum() / n_moved * step;
            }
            x = project(&x, radius);
            asked.push(x.clone());
            if loss(&x) > loss(&best) {
                best = x.clone();
            }
            if k % every == 0 {
                let n_best = n_changed(&best);
                let is_sparser = n_best < 0.95 * n_before;
                counts[usize::from(is_sparser)] += 1;
                if is_sparser {
                    (step, x) = (radius as f32, best.clone());
                } else {
                    step = (step / 1.5).max(0.1 * radius as f32);
                }
                (n_before, n_moved) = (n_best, (n_best / 1.5).ceil());
            }
        }
    }
    (asked, best, counts)
}

#[test]
fn apgd_in_l1_takes_the_steps_of_its_paper() {
    let model = function(|x| {
        let f = -((x - Tensor::from_slice(&TOPS)).abs().matmul(&Tensor::from_slice(&FACTORS)));
        Tensor::stack(&[&f - 1.0, f.zeros_like()], 1)
    });
    // No short number: no step ends at the top of a pixel, where it has no gradient.
    let (n, epsilon) = (6, 0.5831);
    let data = of_class(1, rows_of_pixels(&[GREY; 6]));
    let recorder = Recorder::new(&model);
    let attack = config("apgd-ce", &[("steps", "200")]).build().unwrap();
    let found = proposal(attack.as_ref(), &recorder, &data, &threat(Norm::L1, epsilon)).images;
    let asked = recorder.asked();
    assert_eq!(asked.len(), 203);
    let as_doubles = |x: &[f32]| x.iter().copied().map(f64::from).collect::<Vec<_>>();
    let mut n_sparser = 0;
    for sample in 0..n {
        let (expected, best, counts) = apgd_l1_by_hand(epsilon, &asked[0].get(sample));
        n_sparser += counts[1];
        for (pass, (got, expected)) in asked.iter().zip(&expected).enumerate() {
            close(&format!("sample {sample}, pass {pass}"), &got.get(sample), &as_doubles(expected));
        }
        close(&format!("sample {sample}"), &found.get(sample), &as_doubles(&best));
    }
    assert!(n_sparser > 8, "{n_sparser}");
}

/// The first two phases have larger balls, where a success is none: all 10 steps are taken and three starts.
#[test]
fn apgd_in_l1_does_not_stop_outside_epsilon() {
    let model = function(|x| {
        let f = x.select(1, 0);
        let outside = (x - 0.5).abs().sum_dim_intlist([1i64].as_slice(), false, Kind::Float).gt(0.22);
        Tensor::stack(&[&f - 9.0, f.zeros_like(), outside.to_kind(Kind::Float) * 2.0 - 1.0], 1)
    });
    let attack = config("apgd-ce", &[("steps", "10")]).build().unwrap();
    let found = proposal(attack.as_ref(), &model, &of_class(1, rows_of_pixels(&[GREY; 4])), &threat(Norm::L1, 0.2));
    assert_eq!(found.queries, [13; 4]);
}

/// The gradient of 3 x_0 - x_1, divided by its mean length, is u = (1.5, -0.5) everywhere, and with decay d = 0.5 the
/// momenta are u and (1 + d) u. With steps s = 0.1 in a ball of 0.15 the points are (0.5, 0.5), (0.6, 0.4) and (0.65,
/// 0.35). The gradients are taken s d m ahead of them, outside the ball, too (Lin et al. 2020, arXiv:1908.06281).
/// VNI-FGSM's neighbours, of radius 0 here, lie around the points.
#[test]
fn the_look_ahead_is_a_step_along_the_decayed_momentum() {
    let ahead = [[0.5, 0.5], [0.675, 0.375], [0.7625, 0.3125]];
    let points = [[0.5, 0.5], [0.6, 0.4], [0.65, 0.35]];
    let model = ascending(|x| x.select(1, 0) * 3.0 - x.select(1, 1));
    let images = rows_of_pixels(&[[0.5, 0.5]]);
    let batch = AttackBatch { images: &images, labels: &Tensor::from_slice(&[1i64]), ids: &[0], targets: None };
    for name in ["ni-fgsm", "vni-fgsm"] {
        let mut options = vec![("steps", "3"), ("step-size", "0.1"), ("decay", "0.5")];
        options.extend((name == "vni-fgsm").then_some(("neighbours", "1")));
        let mut draws = replay::Draws::recorded((0..3).map(|_| images.zeros_like()));
        let recorder = Recorder::new(&model);
        let _last = replay::gradient_attack(
            &config(name, &options),
            &recorder,
            &batch,
            &threat(Norm::Linf, 0.15),
            &images,
            &mut draws,
        )
        .unwrap();
        let expected: Vec<[f64; 2]> = match name {
            "ni-fgsm" => ahead.to_vec(),
            _ => ahead.into_iter().zip(points).flat_map(<[_; 2]>::from).collect(),
        };
        let asked = recorder.asked();
        assert_eq!(asked.len(), expected.len(), "{name}");
        for (pass, (got, expected)) in asked.iter().zip(&expected).enumerate() {
            close(&format!("{name}, pass {pass}"), got, expected);
        }
    }
}

/// A gradient of 1 left of 0.75 and of -2 right of it, steps of 0.05 without momentum, two neighbours up to beta epsilon
/// = 0.3 away (Wang & He 2021, arXiv:2103.15571, algorithm 1: the direction is g_t + v_t, and v_{t+1} is the mean of the
/// neighbours' gradients at x_t minus g_t).
///
/// Image 0: the neighbours of 0.5 are 0.8 and 0.5. The first step goes up; v = (-2 + 1) / 2 - 1 = -1.5. At 0.55 g + v =
/// -0.5, and it goes down; with both neighbours at 0.25 v is 0 afterwards, so it goes up again.
///
/// Image 1: all gradients at and around 0.77 are -2, so v = 0, and those at and around 0.72 are 1.
#[test]
fn the_variance_around_a_point_tunes_the_next_step() {
    let model = ascending(|x| {
        let x = x.select(1, 0);
        &x - (&x - 0.75).relu() * 3.0
    });
    let images = rows_of_pixels(&[[0.5], [0.77]]);
    let batch = AttackBatch { images: &images, labels: &Tensor::from_slice(&[1i64; 2]), ids: &[0, 1], targets: None };
    let options = [("steps", "3"), ("step-size", "0.05"), ("decay", "0"), ("neighbours", "2"), ("beta", "1.5")];
    for name in ["vmi-fgsm", "vni-fgsm"] {
        let noise = [[1.0, 0.1], [0.0, 0.1], [-1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]];
        let mut draws = replay::Draws::recorded(noise.map(|[a, b]| rows_of_pixels(&[[a], [b]])));
        let recorder = Recorder::new(&model);
        let last = replay::gradient_attack(
            &config(name, &options),
            &recorder,
            &batch,
            &threat(Norm::Linf, 0.2),
            &images,
            &mut draws,
        )
        .unwrap();
        // A pass for the gradients and one for the neighbours in each step.
        let asked = recorder.asked();
        close(&format!("{name}, step 1"), &asked[2], &[0.55, 0.72]);
        close(&format!("{name}, step 2"), &asked[4], &[0.5, 0.77]);
        close(&format!("{name}, step 3"), &last, &[0.55, 0.72]);
    }
}
