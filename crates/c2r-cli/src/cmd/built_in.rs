use anyhow::Context;
use c2r_experiment::BuiltIn;
use c2r_run::terminal::Ui;
use c2r_train::Protocol;

/// The command, which is for `cargo xtask reproduce` and therefore not in the help.
pub(crate) fn run(ui: &Ui) -> anyhow::Result<()> {
    let profiles = c2r_distill::profiles::texts().map(|(name, text)| (format!("data/profiles/{name}.toml"), text));
    let protocols = Protocol::ALL.map(|protocol| (format!("data/protocols/{protocol}.toml"), protocol.text()));
    let data = c2r_data::BUILT_IN.map(|(path, text)| (path.to_owned(), text));
    let built_in = BuiltIn::new(c2r_attacks::ATTACKS.iter().copied(), profiles.chain(protocols).chain(data));
    ui.text(serde_json::to_string_pretty(&built_in).context("this cannot be written as JSON")?);
    Ok(())
}
