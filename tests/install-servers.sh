#!/usr/bin/env bash
# Installs the exec-servers that tests/real_server.rs runs against: releases of the npm package
# @openai/codex, side by side under target/exec-servers/VERSION. Needs npm; some 900 MB in all.
set -euo pipefail
cd "$(dirname "$0")/.."

for version in 0.120.0 0.142.0 0.171.0; do
  directory=target/exec-servers/$version
  [ -x "$directory/codex" ] && continue
  mkdir -p "$directory"
  npm install --prefix "$directory" --no-audit --no-fund --loglevel error "@openai/codex@$version"
  # The npm command is a wrapper that starts this one; the tests want to end it by its own id.
  binary=$(find "$PWD/$directory/node_modules/@openai" -path '*/vendor/*' -name codex -type f | head -n 1)
  [ -n "$binary" ] || { echo "no codex binary in $directory" >&2; exit 1; }
  ln -sfn "$binary" "$directory/codex"
  echo "installed exec-server $version"
done
