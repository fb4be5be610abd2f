"""What every sandbox shows of the host's system. The cache loads this without what makes a sandbox of it."""

SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib64", "lib32", "libx32")
ETC = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs", "ssl/openssl.cnf", "ssl/cert.pem",
    "ca-certificates", "pki/tls/certs", "pki/ca-trust/extracted", "localtime", "mime.types", "protocols", "services",
)  # fmt: skip
"""What an operation sees of the host's /etc: how to find libraries, trust certificates, tell time."""
