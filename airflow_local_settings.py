"""Import what every task needs once, in the processes that Airflow forks tasks from; Airflow looks for this file.

A task's process begins as a copy of its executor's, with all that was imported there. Without this file everything
works just as well, and each task imports for itself, which is about a third of a short one's processor time.
"""

from contextlib import suppress

__all__: tuple[str, ...] = ()  # Airflow takes everything else for a setting of its own

# A deployment that is not set up for these Dags must still start, and so must a program that begins with one of our
# modules, in the middle of whose import this is read: what they have in each other is not there yet.
with suppress(ImportError, AttributeError):
    import certifi

    import include.archive.stores
    import include.provider.notices
    import include.provider.operators
    import include.provider.sealing
    import include.provider.sensors
    import include.provider.transfer
    import include.recall.budget
    import include.recall.client
    import include.recall.regions  # noqa: F401
    from include.recall.media import trusting

    trusting(certifi.where())

# What Airflow itself loads and makes with a process's first task, or each task's process would anew: certificates for
# the API server above all, and templates' extensions and OpenSSL's ciphers.
with suppress(ImportError, AttributeError, TypeError):
    import airflow.dag_processing.bundles.local
    import airflow.sdk.crypto
    import airflow.sdk.execution_time.cache
    import airflow.sdk.execution_time.supervisor
    import jinja2.debug
    import jinja2.ext  # noqa: F401
    from airflow.sdk.api.client import Client
    from cryptography.fernet import Fernet

    Client(base_url="http://localhost/", token="").close()  # noqa: S106 - nothing is sent
    cipher = Fernet(Fernet.generate_key())
    cipher.decrypt(cipher.encrypt(b""))

# For an archive in S3: half a second for every task that would import it by itself.
with suppress(ImportError):
    import airflow.providers.amazon.aws.hooks.s3  # noqa: F401

    import include.archive.stores.s3
    import include.archive.stores.s3_boto3  # noqa: F401

    include.archive.stores.s3_access.trusting(True)
