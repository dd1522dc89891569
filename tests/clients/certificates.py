"""Certificates for tests of TLS, made by openssl."""
import subprocess


def make_ca(folder, name):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                    "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"], check=True, capture_output=True)
    return folder / f"{name}.pem"


def make_certificate(folder, name, ca):
    """`name`.pem and `name`.key, for 127.0.0.1, signed by `ca`."""
    key, request, extensions = folder / f"{name}.key", folder / f"{name}.csr", folder / "san"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    subprocess.run(["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request],
                   check=True, capture_output=True)
    subprocess.run(["openssl", "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca.with_suffix(".key"), "-CAcreateserial", "-days", "2",
                    "-extfile", extensions, "-out", folder / f"{name}.pem"], check=True, capture_output=True)
    return folder / f"{name}.pem", key
