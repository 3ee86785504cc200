"""What a store's library says, in words that name the provider's own variables."""

from __future__ import annotations

import pytest
from obstore import exceptions as upstream

from models.errors import AccessError, NotFoundError, StorageError
from models.storage import open_store
from models.storage_errors import explained

# Of Azurite 3.35, as the library (obstore 0.12) hands it on: of a list, and of a single object.
NO_CONTAINER = """Generic MicrosoftAzure error: Error performing list request: 404 Not Found:
<Error><Code>ContainerNotFound</Code><Message>The specified container does not exist.</Message>"""


def said(uri: str, error: Exception) -> StorageError:
    with pytest.raises(StorageError) as raised, explained(uri, "list", ""):
        raise error
    return raised.value


@pytest.mark.parametrize("kind", [upstream.GenericError, upstream.NotFoundError])
@pytest.mark.parametrize(
    "uri", ["az://caps/a", "abfs://caps/a", "abfss://caps@factory.dfs.core.windows.net/a"]
)
def test_a_container_that_is_not_there_is_named(uri: str, kind: type[Exception]) -> None:
    error = said(uri, kind(NO_CONTAINER))
    assert isinstance(error, NotFoundError)
    assert f"cannot list {uri}: the container 'caps' does not exist" in str(error)
    assert "AZURE_STORAGE_ACCOUNT_NAME" in str(error)
    assert "AWS" not in str(error)


def test_a_bucket_that_is_not_there_is_named_with_the_place_that_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    error = said("s3://caps/a", upstream.GenericError("404: <Code>NoSuchBucket</Code>"))
    assert "the bucket 'caps' does not exist at http://store:9000; check its name" in str(error)
    error = said("gs://caps/a", upstream.NotFoundError("404: <Code>NoSuchBucket</Code>"))
    assert "the bucket 'caps' does not exist; check its name" in str(error)


@pytest.mark.parametrize(
    ("uri", "variable"),
    [
        ("s3://caps/a", "AWS_ACCESS_KEY_ID"),
        ("s3a://caps/a", "AWS_ACCESS_KEY_ID"),
        ("gs://caps/a", "GOOGLE_SERVICE_ACCOUNT"),
        ("az://caps/a", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("abfs://caps/a", "AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)
def test_refused_credentials_are_told_by_the_variables_of_their_provider(
    uri: str, variable: str
) -> None:
    for error in (
        upstream.PermissionDeniedError("no"),
        upstream.GenericError("status: 403 Forbidden"),
        upstream.GenericError("no credential"),
    ):
        explanation = said(uri, error)
        assert isinstance(explanation, AccessError)
        assert variable in str(explanation)


def test_azure_without_an_account_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AccessError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://caps/without-an-account").read("a")


def test_azure_with_a_key_that_is_none_is_told_to_check_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_USE_EMULATOR", raising=False)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "factory")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "not base64!")
    with pytest.raises(AccessError, match="check AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://caps/with-a-wrong-key").read("a")
