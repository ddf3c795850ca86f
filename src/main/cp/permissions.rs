//! Asks the server which files can be executed. The protocol does not tell, and a shell there does.

use std::path::Path;

use log::debug;

use super::{shell, tree::File};
use crate::connect::Remote;

/// Says of each path whether it can be executed. As root, that is: by anyone.
const SCRIPT: &str = r#"for path; do if [ -x "$path" ]; then printf x; else printf .; fi; done"#;
/// How long the paths of one command may be together. Systems take at least twice that.
const LONGEST: usize = 64 << 10;

/// Asks about all files. Where there is no sh it stays unknown.
pub(super) async fn ask(remote: &Remote, files: &mut [File]) {
    let mut rest = files;
    while !rest.is_empty() {
        let (batch, others) = rest.split_at_mut(batch(rest));
        rest = others;
        match ask_about(remote, batch).await {
            Ok(answers) => {
                for (file, answer) in batch.iter_mut().zip(answers) {
                    file.is_executable = Some(answer == b'x');
                }
            }
            Err(problem) => {
                debug!("whether files can be executed is not known: {problem}");
                return;
            }
        }
    }
}

/// How many of the first files go into one command.
fn batch(files: &[File]) -> usize {
    let mut length = 0;
    let fitting = files.iter().take_while(|file| {
        length += file.source.as_os_str().len() + 1;
        length <= LONGEST
    });
    fitting.count().max(1)
}

async fn ask_about(remote: &Remote, files: &[File]) -> Result<Vec<u8>, String> {
    let paths = files.iter().map(|file| shell::argument(&file.source));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    let folder = files.first().and_then(|file| file.source.parent());
    let answers = shell::run(remote, folder.unwrap_or(Path::new("/")), SCRIPT, paths)
        .await
        .map_err(|failure| failure.to_string())?;
    if answers.len() != files.len() {
        return Err("the answer is not one for each".to_owned());
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_a_file_and_not_too_many() {
        let file = |length: usize| File {
            source: "x".repeat(length).into(),
            destination: "y".into(),
            size: None,
            mode: None,
            is_executable: None,
        };
        assert_eq!(batch(&[file(2 * LONGEST), file(1)]), 1);
        let half = LONGEST / 2 - 1;
        assert_eq!(batch(&[file(half), file(half), file(1)]), 2);
    }
}
