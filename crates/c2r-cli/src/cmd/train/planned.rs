//! What `c2r train` costs, for the estimates.

use std::num::NonZeroUsize;

use c2r_data::SyntheticSet;
use c2r_distill::Work;
use c2r_train::{Targets, TrainConfig};
use tch::Device;

use super::{Args, resolve};
use crate::{
    cmd::estimate::{self, Planned, Written},
    data,
    exit::{self, OrExit},
};

/// What the command will send through its network. Labels of a teacher, which cost a forward pass each, are not foreseen.
pub(crate) fn planned(args: &Args, written: &mut Written) -> anyhow::Result<Planned> {
    let (dataset, n) = match (&args.synthetic, &args.dataset) {
        (Some(named), _) => match written.sets.get(named).or_else(|| written.sets.get(&named.join(data::SET_FILE))) {
            Some((dataset, per_class)) => (dataset.clone(), per_class * dataset.classes.len()),
            None => {
                let set = SyntheticSet::load(&data::set_file(named)?).or_exit(exit::DATA)?;
                let dataset = c2r_data::spec(&set.header.dataset).or_exit(exit::DATA)?;
                (dataset, set.decode(Device::Cpu).1.numel())
            }
        },
        (None, Some(name)) => {
            let dataset = c2r_data::spec(name).or_exit(exit::USAGE)?;
            let wanted = args.train_per_class.map_or(usize::MAX, NonZeroUsize::get);
            let n = estimate::train_per_class(&dataset).min(wanted) * dataset.classes.len();
            (dataset, n)
        }
        (None, None) => unreachable!("clap requires one of them"),
    };
    let model = match &args.model {
        Some(model) => *model,
        None => dataset.model.parse()?,
    };
    // A set that is not there yet has no learned rate yet; any will do, since it costs nothing.
    let any_rate = || Ok(args.protocol.config().lr);
    let epsilon = args.eps.unwrap_or(dataset.epsilon);
    let (config, _) = resolve(args, epsilon, &dataset, &Targets::Hard, &any_rate)?;
    written.network(args.run_dir.as_deref(), model);
    Ok(Planned { dataset, model, work: work(&config, n) })
}

/// What training on `n` images sends through the network, without a teacher's labels.
pub(crate) fn work(config: &TrainConfig, n: usize) -> Work {
    let images = config.length.steps(n, config.batch_size) as f64 * config.batch_size.min(n) as f64;
    let attacked = config.adversarial.as_ref().map_or(0.0, |adversarial| f64::from(adversarial.steps)) * images;
    Work { forward: attacked, input_gradient: attacked, training: images }
}
