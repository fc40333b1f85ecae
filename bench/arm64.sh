#!/usr/bin/env bash
# A bundle (or a GGUF) on aarch64 code, under qemu: bench/arm64.sh BUNDLE WORK [windows of text, default 4]
#
# A Debian arm64 root is unpacked in WORK (debootstrap's first half and dpkg-deb; nothing is installed, no chroot,
# no binfmt). Its Python runs with the very files that tenth push sends to such a device (remote/kit.py), computes
# logits of a text, and those are compared with this machine's: one JSON line. Packages here: debootstrap,
# qemu-user-static. The mirror and the release are those of this system's apt. PYTHON names tenth's interpreter.
set -euo pipefail
bundle=$(realpath "$1") work=$(mkdir -p "$2" && realpath "$2") windows=${3:-4}
python=${PYTHON:-python3} script=$(realpath "$(dirname "$0")/arm64.py")
root=$work/root
if [ ! -e "$root/usr/bin/python3" ]; then
  read -r mirror release < <(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' \
    'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
  rm -rf "$root"
  debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libgomp1,libstdc++6 \
    "$release" "$root" "$mirror" > "$work/debootstrap.log"
  for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
fi
arm=(qemu-aarch64-static -L "$root" "$root/usr/bin/python3")
probe=$("${arm[@]}" -c "$("$python" -c 'from tenth.remote.kit import PROBE; print(PROBE)')")
"$python" "$script" kit "$probe" "$work/lib"
"$python" "$script" logits "$bundle" "$work/here.npz" "$windows"
"$python" "$script" logits "$bundle" "$work/own.npz" "$windows" 1
PYTHONPATH=$work/lib PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=passive \
  "${arm[@]}" -s -P "$script" logits "$bundle" "$work/arm.npz" "$windows"
"$python" "$script" compare "$work/here.npz" "$work/own.npz" "$work/arm.npz"
