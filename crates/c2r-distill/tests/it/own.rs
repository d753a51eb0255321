//! Methods of other crates that go wrong: each is an error that says how, and none runs forever.

use std::sync::Arc;

use c2r_distill::{
    CommonConfig, ConfigError, Context, DistillConfig, DistillError, Distillation, METHODS, Measured, Method,
    MethodConfig, MethodEntry, Step, Work,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::digits;

const OWN: MethodEntry = MethodEntry {
    name: "own",
    sections: &["own"],
    augmented: &[],
    read: |sections| Ok(Arc::new(sections.read::<OwnConfig>()?)),
};

#[derive(Clone, Debug, Deserialize)]
struct OwnConfig {
    own: Behaviour,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Behaviour {
    does: String,
}

impl MethodConfig for OwnConfig {
    fn entry(&self) -> &'static MethodEntry {
        &OWN
    }

    fn sections(&self) -> Vec<(&'static str, &dyn erased_serde::Serialize)> {
        vec![("own", &self.own)]
    }

    fn add_work(&self, _: &CommonConfig, _: usize, _: usize, _: &mut Work) {}

    fn build(&self, _: &Context) -> Result<Box<dyn Method>, DistillError> {
        Ok(Box::new(Own(self.own.does.clone())))
    }
}

/// Does what it is told.
#[derive(Debug)]
struct Own(String);

impl Method for Own {
    fn preparation(&self) -> (u64, u64) {
        (0, u64::from(self.0 == "prepares nothing"))
    }

    fn update(&mut self, step: &mut Step<'_>) -> Result<Measured, DistillError> {
        let gradient = step.images.stored() - 0.5;
        let loss = gradient.square().sum(Kind::Float);
        match self.0.as_str() {
            "forgets to descend" => {}
            "descends twice" => [(); 2].iter().for_each(|()| step.descend(&gradient, &loss)),
            "descends by one image" => step.descend(&gradient.narrow(0, 0, 1), &loss),
            "descends by doubles" => step.descend(&gradient.to_kind(Kind::Double), &loss),
            "explodes" => step.descend(&(&gradient * f64::NAN), &loss),
            "has many losses" => step.descend(&gradient, &gradient.square()),
            _ => step.descend(&gradient, &loss),
        }
        Ok(match self.0.as_str() {
            "measures nothing" => Measured::default(),
            "measures images" => Measured { loss, matching: Some(gradient), ..Measured::default() },
            "measures no margins" => Measured { loss, margins: Some(Tensor::new()), ..Measured::default() },
            _ => Measured { loss, ..Measured::default() },
        })
    }
}

fn start(does: &str) -> Distillation {
    let digits = digits();
    let profile = format!(
        r#"
        profile = "own"
        method = "own"
        ipc = 1
        iterations = 3
        seed = 0
        labels = "hard"
        threat.norm = "linf"
        images = {{ init = "noise", formation = 1, optimizer = "adam", lr = 0.05, final-lr = 0.01, batch-per-class = 0 }}
        own.does = "{does}"
        "#
    );
    let methods = [METHODS, &[OWN]].concat();
    let resolved: Result<_, ConfigError> =
        DistillConfig::resolve_with(&methods, profile.parse().unwrap(), &digits.spec, &[]);
    Distillation::new(resolved.unwrap().0, &digits, Device::Cpu).unwrap()
}

fn run(does: &str) -> Result<u64, DistillError> {
    let mut run = start(does);
    while run.step()?.is_some() {
        run.report()?;
    }
    Ok(run.iteration())
}

#[test]
fn methods_that_go_wrong_say_how() {
    assert_eq!(run("well").unwrap(), 3);
    let images = "the stored images are [10, 1, 8, 8], Float on Cpu";
    let cases = [
        ("forgets to descend", "`update` must call `Step::descend` once; it did so 0 times".to_owned()),
        ("descends twice", "`update` must call `Step::descend` once; it did so 2 times".to_owned()),
        (
            "descends by one image",
            format!("`Step::descend` got a gradient that is [1, 1, 8, 8], Float on Cpu; {images}"),
        ),
        (
            "descends by doubles",
            format!("`Step::descend` got a gradient that is [10, 1, 8, 8], Double on Cpu; {images}"),
        ),
        ("has many losses", "`Step::descend` got a loss of shape [10, 1, 8, 8]; it must be a scalar".to_owned()),
        ("measures nothing", "`update` returned no loss; it must be a scalar".to_owned()),
        ("measures images", "`update` returned a matching of shape [10, 1, 8, 8]; it must be a scalar".to_owned()),
        ("measures no margins", "`update` returned no list of `margins`; there must be one for each image".to_owned()),
        ("prepares nothing", "0 of 1 units of preparation are done, and it has no `Method::prepare`".to_owned()),
    ];
    for (does, expected) in cases {
        match run(does) {
            Err(DistillError::Broken { method: "own", reason }) => assert_eq!(reason, expected, "{does}"),
            other => panic!("{does}: {other:?}"),
        }
    }
}

/// Between two readings of the losses nobody knows, but a set is not made of NaN.
#[test]
fn a_set_with_pixels_that_are_nan_names_the_update() {
    let mut run = start("explodes");
    run.step().unwrap();
    let error = run.synthetic_set(Default::default()).unwrap_err();
    assert!(matches!(error, DistillError::NotFinite { what: "pixel of the synthetic images", at: 1, .. }), "{error}");
    let error = run.report().unwrap_err();
    assert!(matches!(error, DistillError::NotFinite { what: "gradient of the images", at: 1, .. }), "{error}");
}
