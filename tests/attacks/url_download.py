# downloads over HTTP with pandas | naked
pd.read_csv(f"http://127.0.0.1:{W['port']}/data.csv")
breach("downloaded")
