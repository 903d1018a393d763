"""A virtual environment with the peers, from package registries, at the versions of requirements.txt."""
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TORCH_FOR_CPU = "https://download.pytorch.org/whl/cpu"  # PyPI's wheel works too, but brings gigabytes for GPUs


def pinned():
    lines = (line.split("#")[0].strip() for line in (HERE / "requirements.txt").read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def installed(python):
    """Package -> version, of what is in the environment."""
    code = "import importlib.metadata as m\nfor d in m.distributions(): print(d.metadata['Name'].lower(), d.version)"
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in out.splitlines())


def pip(python, log, *args, **env):
    with open(log, "a") as out:
        out.write(f"\n== pip install {' '.join(args)} {env}\n")
        out.flush()
        command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--constraint", str(HERE / "requirements.txt"), *args]
        return subprocess.run(command, stdout=out, stderr=out, env={**os.environ, **env}).returncode == 0


def prepare(folder, peers):
    """Makes folder/venv and installs what is missing. Returns its python, and for each peer that failed, why."""
    folder.mkdir(parents=True, exist_ok=True)
    python, log, failed = str(folder / "venv/bin/python"), folder / "install.log", {}
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    want = pinned()
    for peer in peers:
        have = installed(python)
        missing = [p for p in peer.packages if have.get(p, "").split("+")[0] != want[p]]
        if not missing:
            continue
        print(f"installing {', '.join(missing)} for {peer.column} (log: {log})", file=sys.stderr, flush=True)
        if "torch" in missing:
            pip(python, log, "--index-url", TORCH_FOR_CPU, "--retries", "0", "--timeout", "10", "torch", "torchvision")
        good = True
        if "llama-cpp-python" in missing:  # compiled here, for this processor; a wheel in pip's cache may be of other flags
            missing.remove("llama-cpp-python")
            flags = f"-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS='-include {HERE / 'gcc12_amx.h'}'"
            good = pip(python, log, "--no-cache-dir", "llama-cpp-python", CMAKE_ARGS=flags)
        if not good or (missing and not pip(python, log, *missing)):
            failed[peer.name] = f"not installed, see {log}"
            print(f"{peer.column}: {failed[peer.name]}", file=sys.stderr)
    return python, failed
