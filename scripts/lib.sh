# Shared by the scripts; sourced, not run.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
JOBS=${JOBS:-$(nproc)}

if [ -t 1 ]; then BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' OFF=$'\e[0m'; else BOLD= DIM= RED= OFF=; fi
step() { printf '%s▸ %s%s\n' "$BOLD" "$*" "$OFF"; }
fail() { printf '%s✗ %s%s\n' "$RED" "$*" "$OFF" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else fail "\"$*\" needs root: run as root, or install sudo"; fi
}

# What building and running need; all of it is in Debian 12.
BUILD_PACKAGES="g++ cmake ninja-build ccache mold pkg-config ca-certificates curl
  libgrpc++-dev libgrpc-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev
  prometheus-cpp-dev libboost1.81-dev libspdlog-dev libfmt-dev libcli11-dev nlohmann-json3-dev
  libpcre2-dev libicu-dev libxxhash-dev libssl-dev libcurl4-openssl-dev libedit-dev zlib1g-dev
  libgtest-dev libgmock-dev libbenchmark-dev xz-utils python3"
# What the tests need on top.
TEST_PACKAGES="etcd-server clang-14 libclang-rt-14-dev llvm-14 clang-format-14 git python3-venv jq openssl prometheus procps"

# What cross builds for Arm need on top (scripts/sysroot).
CROSS_PACKAGES="g++-aarch64-linux-gnu qemu-user"

# Those of BUILD_PACKAGES that are linked.
libraries_to_build() { printf '%s ' $BUILD_PACKAGES | tr ' ' '\n' | grep -E -- '-dev$|^nlohmann' | tr '\n' ' '; }

missing_packages() {
  local name
  for name in "$@"; do
    dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || printf '%s ' "$name"
  done
}

install_packages() {
  local missing
  missing=$(missing_packages "$@")
  [ -n "$missing" ] || return 0
  step "installing Debian packages: $missing"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing \
    | grep -E '^(Setting up|Unpacking)' | sed -n '1~10p' || true
  missing=$(missing_packages "$@")
  [ -z "$missing" ] || fail "not installed: $missing (see apt-get's output above)"
}

build() {  # build PRESET [cmake --build arguments]
  local preset=$1; shift
  local presets=$ROOT/build/$preset/presets.json fresh=  # that it was configured with, if by this
  [ ! -f "$presets" ] || cmp -s "$ROOT/CMakePresets.json" "$presets" || fresh=--fresh
  [ -f "$ROOT/build/$preset/build.ninja" ] && [ -z "$fresh" ] || {
    step "configuring ($preset)"
    cmake -S "$ROOT" --preset "$preset" $fresh > "$ROOT/build-$preset.log" 2>&1 \
      || { cat "$ROOT/build-$preset.log"; fail "cmake failed"; }
    rm -f "$ROOT/build-$preset.log"
    cp "$ROOT/CMakePresets.json" "$presets"
  }
  cmake --build "$ROOT/build/$preset" -j "$JOBS" "$@"
}
