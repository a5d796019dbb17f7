from __future__ import annotations

from scripts.check_pins import differences

LOCK = """
requests==2.34.2 \\
    --hash=sha256:00
    # via -r requirements.txt
apache-airflow-providers-amazon==9.37.0 ; python_full_version < '3.11' \\
    --hash=sha256:00
apache-airflow-providers-amazon==9.39.0 ; python_full_version >= '3.11' \\
    --hash=sha256:00
"""


def test_equal_pins_pass() -> None:
    requirements = """# a comment
apache_airflow.providers-Amazon==9.37.0 ; python_version < "3.11"
apache-airflow-providers-amazon==9.39.0 ; python_version >= "3.11"
requests==2.34.2  # HTTP
"""
    assert differences(requirements, LOCK) == []


def test_each_difference_is_named() -> None:
    found = differences("requests==2.0\nboto3==1.0\nmoto>=5\n", LOCK)
    assert found == [
        "not an exact pin: moto>=5",
        "requests: requirements.txt has 2.0, the lock has 2.34.2",
        "boto3: requirements.txt has 1.0, the lock has nothing",
    ]
