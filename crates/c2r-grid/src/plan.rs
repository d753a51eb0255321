//! From a grid to the jobs that fill it.

use std::{collections::BTreeSet, path::PathBuf};

use c2r_experiment::{Experiment, Method, MethodKind, Override, Scale, Subgrid};
use c2r_run::exit;

use crate::{Cell, Datasets, Downstream, Job, Shard, Stage, Workplace, datasets::Dataset, identity::Identity, order};

/// One scale of an experiment, and where it runs.
#[derive(Clone, Copy)]
pub struct Grid<'a> {
    /// Methods and published numbers.
    pub experiment: &'a Experiment,
    /// The grid itself.
    pub scale: &'a Scale,
    /// Where its jobs run.
    pub place: &'a Workplace,
    /// What is known about its datasets.
    pub datasets: &'a Datasets,
}

/// The jobs of a part of a grid.
#[derive(Debug, Clone, Default)]
pub struct GridPlan {
    /// In the order of [`Scale::first`], each after the one it needs.
    pub jobs: Vec<Job>,
    /// Number of distilled sets and references in the wanted part of the grid, those of other shards included.
    pub n_chains: usize,
    /// Methods of the grid that are not implemented.
    pub not_implemented: BTreeSet<String>,
}

impl Grid<'_> {
    /// The jobs of the wanted part of the grid in the order of [`Scale::first`], each after the one it needs.
    ///
    /// # Errors
    /// If the selection names what the grid does not have, or nothing is left; for a grid of held-out images, if a dataset has
    /// none.
    pub fn plan(&self, selection: &Subgrid, shard: Shard) -> anyhow::Result<GridPlan> {
        let scale = self.scale;
        scale.check_part(selection).map_err(exit::usage)?;
        let mut plan = GridPlan::default();
        let mut cells = Vec::new();
        for dataset in scale.datasets.iter().filter(|dataset| selection.takes("dataset", dataset)) {
            for name in scale.methods.iter().filter(|method| selection.takes("method", method)) {
                let method = self.experiment.method(name).map_err(exit::usage)?;
                if !method.implemented {
                    plan.not_implemented.insert(name.clone());
                    continue;
                }
                let ipcs: Vec<Option<usize>> = match method.kind {
                    MethodKind::Distill => {
                        scale.ipcs.iter().filter(|ipc| selection.takes("ipc", ipc)).map(|&ipc| Some(ipc)).collect()
                    }
                    MethodKind::Full if selection.takes("ipc", Subgrid::ALL_IMAGES) => vec![None],
                    MethodKind::Full => vec![],
                };
                let seeds = || scale.seeds.iter().filter(|seed| selection.takes("seed", seed));
                for (ipc, &seed) in ipcs.into_iter().flat_map(|ipc| seeds().map(move |seed| (ipc, seed))) {
                    cells.push((Cell { dataset: dataset.clone(), ipc, method: name.clone(), seed }, method));
                }
            }
        }
        cells.sort_by_key(|(cell, _)| order::of_cell(scale, cell));
        for (cell, method) in cells {
            if shard.takes(plan.n_chains) {
                let dataset = self.datasets.get(&cell.dataset)?;
                self.check_held_out(dataset)?;
                Chain { grid: self, plan: &mut plan, cell, dataset, method }.add(selection)?;
            }
            plan.n_chains += 1;
        }
        plan.jobs = order::sorted(scale, plan.jobs);
        if plan.n_chains > 0 {
            return Ok(plan);
        }
        Err(exit::usage(match plan.not_implemented.iter().next() {
            Some(method) => format!("nothing to run: `{method}` is not implemented"),
            None => {
                "nothing to run: the selection matches no part of the grid (the reference on all real images is `ipc=all`)".to_owned()
            }
        }))
    }

    /// Refuses to plan attacks on held-out images of a dataset that has none beside those of the training.
    fn check_held_out(&self, Dataset { entry, .. }: &Dataset) -> anyhow::Result<()> {
        let first = self.scale.train_per_class.filter(|_| self.scale.held_out);
        let (Some(first), Some(n_train)) = (first, entry.n_train) else { return Ok(()) };
        let n_classes = entry.classes.len();
        if first * n_classes < n_train {
            return Ok(());
        }
        Err(exit::usage(format!(
            "--held-out: this scale trains on the first {first} images of each class, and {} has {} of each, so none are \
             left to attack; leave it out with --only, or choose a smaller scale",
            entry.name,
            n_train / n_classes
        )))
    }

    /// The whole grid.
    ///
    /// # Errors
    /// As [`Grid::plan`].
    pub fn whole(&self) -> anyhow::Result<GridPlan> {
        self.plan(&Subgrid::default(), Shard::ALL)
    }
}

/// Everything that is done with one distilled set or one reference.
struct Chain<'a> {
    grid: &'a Grid<'a>,
    plan: &'a mut GridPlan,
    cell: Cell,
    dataset: &'a Dataset,
    method: &'a Method,
}

impl<'a> Chain<'a> {
    fn add(&mut self, selection: &Subgrid) -> anyhow::Result<()> {
        let scale = self.grid.scale;
        let distilled = self.distill()?;
        for protocol in scale.protocols.iter().filter(|protocol| selection.takes("protocol", protocol)) {
            for model in scale.downstream() {
                let trained = self.train(distilled, protocol, model)?;
                for epsilon in &scale.epsilons {
                    for attack in scale.attacks.iter().filter(|attack| selection.takes("attack", attack)) {
                        self.attack(trained, attack, epsilon)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn distill(&mut self) -> anyhow::Result<Option<usize>> {
        let (Some(profile), Some(ipc)) = (&self.method.profile, self.cell.ipc) else { return Ok(None) };
        let scale = self.grid.scale;
        // From general to particular: a setting for one method beats the method's own, which beat the grid's.
        let overrides = self.overrides(None);
        let of = |one_method: bool| {
            let parts = overrides.iter().filter(move |part| part.method.is_some() == one_method);
            parts.flat_map(|part| &part.distill_set)
        };
        let model = scale.model.as_ref().map(|model| format!("model={model}"));
        let general = model.iter().chain(&scale.distill_set).chain(of(false));
        let (ipc, seed) = (ipc.to_string(), self.cell.seed.to_string());
        let mut what = words(["distill", "--config", profile, "--dataset", &self.cell.dataset, "--ipc", &ipc]);
        what.extend(words(["--seed", &seed, "--name", &self.cell.method]));
        what.extend(option("--train-per-class", scale.train_per_class));
        what.extend(sets(general.chain(&self.method.set).chain(of(true))));
        let profile = self.grid.place.root.join(profile);
        self.push(Stage::Distill, None, Some(profile), what).map(Some)
    }

    fn train(&mut self, distilled: Option<usize>, protocol: &str, model: Option<&str>) -> anyhow::Result<usize> {
        let scale = self.grid.scale;
        let mut what = words(["train", "--protocol", protocol, "--seed", &self.cell.seed.to_string()]);
        if distilled.is_none() {
            what.extend(words(["--dataset", &self.cell.dataset]));
            what.extend(option("--train-per-class", scale.train_per_class));
        }
        // The default is left out, so that grids with and without the option share the training.
        what.extend(option("--model", model.filter(|model| *model != self.dataset.entry.model)));
        what.extend(option("--select", scale.selection()));
        let overrides = self.overrides(Some(protocol));
        what.extend(sets(scale.train_set.iter().chain(overrides.iter().flat_map(|part| &part.train_set))));
        // The scale's model is the only one unless the grid has several; then it belongs in the name.
        let model = if scale.train_models.is_empty() { None } else { model.map(str::to_owned) };
        // `c2r` was built with this file.
        let file = self.grid.place.root.join("data/protocols").join(format!("{protocol}.toml"));
        self.push(Stage::Train(Downstream { protocol: protocol.to_owned(), model }), distilled, Some(file), what)
    }

    fn attack(&mut self, trained: usize, attack: &str, epsilon: &str) -> anyhow::Result<usize> {
        let Stage::Train(network) = self.plan.jobs[trained].stage.clone() else {
            unreachable!("a trained network comes from a training")
        };
        let (scale, seed) = (self.grid.scale, self.cell.seed.to_string());
        let mut what = words(["attack", "--dataset", &self.cell.dataset, "--attack", attack]);
        what.extend(words(["--norm", &scale.norm, "--eps", epsilon, "--each", "--seed", &seed]));
        what.extend(option("--held-out-after", scale.train_per_class.filter(|_| scale.held_out)));
        what.extend(option("--n-test", scale.n_test));
        let overrides = self.overrides(Some(&network.protocol));
        let all = scale.attack_set.iter().chain(overrides.iter().flat_map(|part| &part.attack_set));
        let own = format!("{attack}.");
        what.extend(sets(all.filter(|set| set.starts_with(&own))));
        let (attack, epsilon) = (attack.to_owned(), epsilon.to_owned());
        self.push(Stage::Attack { network, attack, epsilon }, Some(trained), None, what)
    }

    /// The scale's settings for this cell; `protocol` is `None` for the distillation.
    fn overrides(&self, protocol: Option<&str>) -> Vec<&'a Override> {
        let Cell { dataset, ipc, method, .. } = &self.cell;
        let matches = |part: &&Override| part.matches(dataset, *ipc, method, protocol);
        self.grid.scale.overrides.iter().filter(matches).collect()
    }

    /// Adds a job and returns its position.
    ///
    /// * `settings`: the profile or protocol that it reads.
    fn push(
        &mut self,
        stage: Stage,
        needs: Option<usize>,
        settings: Option<PathBuf>,
        what: Vec<String>,
    ) -> anyhow::Result<usize> {
        let place = self.grid.place;
        let mut identity = Identity::new(stage.command(), stage.results_version());
        let needed = needs.map(|position| &self.plan.jobs[position]);
        identity = match needed {
            Some(needed) => identity.job(&needed.id),
            None => identity.data(self.dataset)?,
        };
        if let Some(file) = &settings {
            identity = identity.settings(file, &place.root)?;
        }
        let id = identity.words(&what).finish();
        let folder = place.job(&id);
        let mut paths = Vec::new();
        if let Some(needed) = needed {
            let flag = if matches!(stage, Stage::Train(_)) { "--synthetic" } else { "--checkpoint" };
            paths.push((flag, needed.output()));
        }
        paths.push(match stage {
            Stage::Attack { .. } => ("--output", folder.join(stage.output())),
            _ => ("--run-dir", folder.clone()),
        });
        // What is run again is run again from the beginning, without networks of earlier runs.
        if stage == Stage::Distill && !place.force {
            paths.push(("--networks", place.results.join("networks")));
        }
        let (cell, chain, how) = (self.cell.clone(), self.plan.n_chains, place.how(&paths));
        self.plan.jobs.push(Job { cell, stage, needs, chain, id, what, how, folder });
        Ok(self.plan.jobs.len() - 1)
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(String::from).into()
}

fn option<T: ToString>(flag: &str, value: Option<T>) -> Vec<String> {
    value.map_or(vec![], |value| vec![flag.to_owned(), value.to_string()])
}

/// `--set` for each assignment. Of several to one key the last one counts, so only that is kept.
fn sets<'a>(assignments: impl Iterator<Item = &'a String>) -> Vec<String> {
    let key = |assignment: &str| assignment.split('=').next().unwrap_or_default().trim().to_owned();
    let mut kept: Vec<&String> = Vec::new();
    for assignment in assignments {
        kept.retain(|other| key(other) != key(assignment));
        kept.push(assignment);
    }
    kept.into_iter().flat_map(|assignment| ["--set".to_owned(), assignment.clone()]).collect()
}
