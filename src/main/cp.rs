use clap::Args;
#[derive(Debug, Args)]
pub(crate) struct Cp {}
impl Cp {
    pub(crate) fn execute(self) -> Result<u8, String> {
        Ok(0)
    }
}
