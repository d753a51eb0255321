//! The numeric pieces against `units.safetensors`, 1e-5 absolute or relative.

use std::{collections::BTreeMap, path::Path};

use c2r_attacks::replay;
use c2r_base::{Norm, artifact::TensorFile, grad, loss};
use tch::{Kind, Tensor};

/// The units are committed, so that every clone has them.
fn units() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/units.safetensors");
    TensorFile::read(&path).unwrap().tensors
}

fn manifest() -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/units.json");
    c2r_base::artifact::read_json(&path).unwrap()
}

/// Within 1e-5, absolute or relative.
fn close(what: &str, got: &Tensor, expected: &Tensor) {
    close_within(what, got, expected, 1e-5);
}

fn close_within(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size(), "{what}");
    let error = (got - expected).abs() / expected.abs().clamp_min(1.0);
    let worst = error.max().double_value(&[]);
    assert!(worst <= tolerance, "{what} is off by {worst:e}");
}

/// Value and gradient of the summed loss.
fn value_and_gradient(logits: &Tensor, loss: impl Fn(&Tensor) -> Tensor) -> (Tensor, Tensor) {
    let z = logits.detach().set_requires_grad(true);
    let value = loss(&z);
    let gradient = grad::gradients(&value.sum(Kind::Float), &[&z]).swap_remove(0);
    (value.detach(), gradient)
}

#[test]
fn losses_and_their_gradients() {
    let u = units();
    let (logits, labels) = (&u["dlr/logits"], &u["dlr/labels"]);
    let (value, gradient) = value_and_gradient(logits, |z| loss::dlr(z, labels));
    close("dlr", &value, &u["dlr/loss"]);
    close("dlr gradient", &gradient, &u["dlr/grad"]);
    let targets = &u["dlr_targeted/target"];
    let (value, gradient) = value_and_gradient(logits, |z| loss::dlr_targeted(z, labels, targets));
    close("targeted dlr", &value, &u["dlr_targeted/loss"]);
    close("targeted dlr gradient", &gradient, &u["dlr_targeted/grad"]);
    let (value, gradient) = value_and_gradient(logits, |z| loss::cw(z, labels, 50.0));
    close("cw", &value, &u["cw_linf/loss_per_sample"]);
    close("cw gradient", &gradient, &u["cw_linf/grad_of_sum"]);
    close("cw l2", &loss::margin(logits, labels).clamp_min(0.0), &u["cw_l2_paper/f"]);
    close("cw l2 clipped", &replay::clipped_margin(logits, labels).clamp_min(0.0), &u["cw_l2_torchattacks/f"]);

    let clean = u["tpgd/logits_clean"].softmax(1, Kind::Float);
    let (value, gradient) = value_and_gradient(logits, |z| loss::kl(&clean, z));
    close("kl", &value.sum(Kind::Float).view([1]), &u["tpgd/kl_sum"]);
    close("kl gradient", &gradient, &u["tpgd/grad_logits_adv"]);
}

#[test]
fn jitter() {
    let u = units();
    let (logits, labels) = (&u["dlr/logits"], &u["dlr/labels"]);
    let noise = &u["jitter/noise"] * 0.1;
    let length = &u["jitter/linf_norm_of_delta"];
    let (value, gradient) = value_and_gradient(logits, |z| loss::jitter(z, labels, &noise, 10.0, length));
    close("jitter", &value, &u["jitter/loss_per_sample"]);
    close("jitter mean", &value.mean(Kind::Float).view([1]), &u["jitter/loss_mean"]);
    let n = logits.size()[0] as f64;
    close("jitter gradient", &(gradient / n), &u["jitter/grad_logits_of_mean"]);
}

#[test]
fn momentum_and_variance() {
    let u = units();
    let momentum = replay::momentum(&u["mifgsm/grad"], &u["mifgsm/momentum_old"], 0.9);
    close("momentum", &momentum, &u["mifgsm/momentum_new_decay0.9"]);
    let gradient = &u["mifgsm/grad"];
    let variance = u["vmi/neighbour_grads"].mean_dim([0i64].as_slice(), false, Kind::Float) - gradient;
    close("variance", &variance, &u["vmi/v"]);
    let tuned = replay::momentum(&(gradient + variance), &u["mifgsm/momentum_old"], 1.0);
    close("variance-tuned momentum", &tuned, &u["vmi/momentum_new_decay1.0"]);
}

#[test]
fn projections_onto_balls() {
    let u = units();
    let image = |name: &str| u[name].view([8, 3, 4, 4]);
    let (x, y) = (image("l1_projection/x"), image("l1_projection/y"));
    for epsilon in ["0.5", "2.0", "10.0"] {
        let delta = image(&format!("l1_projection/eps{epsilon}/delta"));
        let got = Norm::L1.project(&x, &(&x + &y), epsilon.parse().unwrap());
        close(&format!("l1 {epsilon}"), &got, &(&x + &y + delta));
    }
    // These two are the projections onto the ball alone, the box follows.
    for (norm, epsilon, golden) in
        [(Norm::L2, 2.0, "l2_projection/eps2.0/out"), (Norm::Linf, 0.5, "linf_projection/eps0.5/out")]
    {
        let expected = (&x + image(golden)).clamp(0.0, 1.0);
        close(golden, &norm.project(&x, &(&x + &y), epsilon), &expected);
    }
}

#[test]
fn apgd_checkpoints() {
    for (steps, expected) in manifest()["apgd_checkpoints"].as_object().unwrap() {
        let expected: Vec<u64> = expected.as_array().unwrap().iter().map(|at| at.as_u64().unwrap()).collect();
        let got: Vec<u64> = replay::apgd_checkpoints(steps.parse().unwrap()).into_iter().map(u64::from).collect();
        assert_eq!(got, expected, "{steps} steps");
    }
}

#[test]
fn apgd_oscillation() {
    let u = units();
    let trace = &u["apgd/loss_trace"];
    for (j, k) in [(21i64, 22i64), (40, 19), (56, 16), (69, 13), (98, 6)] {
        // For the first window the reference compares with a row of its buffer that is still zero.
        let before = if j == k - 1 { trace.narrow(0, 0, 1).zeros_like() } else { trace.narrow(0, j - k, 1) };
        let window = Tensor::cat(&[before, trace.narrow(0, j - k + 1, k)], 0);
        let got = replay::apgd_oscillates(&window, 0.75).to_kind(Kind::Float);
        close(&format!("j{j} k{k}"), &got, &u[&format!("apgd/oscillation_flag/j{j}_k{k}")]);
    }
}

#[test]
fn square_schedule_and_windows() {
    for (case, expected) in manifest()["square_p"].as_object().unwrap() {
        let queries: u32 = case.split(['=', ',']).nth(1).unwrap().parse().unwrap();
        let rescaled = case.ends_with("True");
        let numbers = |key: &str| -> Vec<f64> {
            expected[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
        };
        for (at, iteration) in numbers("iteration").into_iter().enumerate() {
            let p = replay::square_p(0.8, iteration as u32, queries, rescaled);
            assert!((p - numbers("p")[at]).abs() < 1e-12, "{case} at {iteration}: {p}");
            let side = |norm| replay::square_side(norm, p, 32, 32) as f64;
            assert_eq!(side(Norm::Linf), numbers("side_linf_32")[at], "{case} at {iteration}");
            assert_eq!(side(Norm::L2), numbers("side_l2_32")[at], "{case} at {iteration}");
        }
    }
    let u = units();
    for side in [3, 5, 6, 7, 9, 15] {
        close("window", &replay::square_window(side), &u[&format!("square_l2/eta_{side}_untransposed")]);
    }
}

#[test]
fn deepfool_step() {
    let u = units();
    let (chosen, delta) = replay::deepfool_step(&u["deepfool/logits"], &u["deepfool/jacobian"], &u["deepfool/label"]);
    // The reference counts classes without the label.
    let chosen = &chosen - chosen.gt_tensor(&u["deepfool/label"]).to_kind(Kind::Int64);
    let expected = &u["deepfool/chosen_class"];
    let expected_other = expected - expected.gt_tensor(&u["deepfool/label"]).to_kind(Kind::Int64);
    assert!(chosen == *expected || chosen == expected_other, "{chosen} {expected}");
    close("delta", &delta, &u["deepfool/delta_before_overshoot"]);
}

#[test]
fn fab_projections() {
    let u = units();
    for (case, tolerance) in [("small", 2e-5), ("image", 2e-5)] {
        let part = |name: &str| u[&format!("fab_projection/{case}/{name}")].shallow_clone();
        let feasible = part("feasible").to_kind(Kind::Bool);
        let rows = feasible.nonzero().squeeze_dim(1);
        for (norm, name) in [(Norm::Linf, "d_linf"), (Norm::L2, "d_l2"), (Norm::L1, "d_l1")] {
            let got = replay::fab_projection(norm, &part("t"), &part("w"), &part("b"));
            assert_eq!(got.isfinite().all().int64_value(&[]), 1, "{case} {name} is finite");
            let pick = |tensor: &Tensor| tensor.index_select(0, &rows);
            close_within(&format!("{case} {name}"), &pick(&got), &pick(&part(name)), tolerance);
        }
    }
}
