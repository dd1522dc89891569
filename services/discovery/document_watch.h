// A document in a key of etcd: followed, and written so that only newer versions replace older
// ones.
#pragma once

#include <memory>
#include <string>

#include "services/discovery/document_source.h"
#include "services/discovery/election.h"
#include "services/discovery/key_watch.h"

namespace switchyard::discovery {

class DocumentWatch final : public DocumentSource {
 public:
  // Of PREFIX/NAME. That the key is deleted takes nothing back: the last version stays in force.
  DocumentWatch(const std::shared_ptr<EtcdClient>& client, const std::string& name,
                TakeDocument take);

  const std::string& name() const override { return taker_.name(); }
  // The contact is etcd's.
  SourceHealth health() const override;
  // Of the last version that was offered, whatever became of it; 0: nothing yet, or the key is
  // gone. What PutDocument compares with. Not told before the callback has returned.
  int64_t revision() const;

 private:
  const std::shared_ptr<EtcdClient> client_;
  DocumentTaker taker_;
  mutable absl::Mutex mutex_;
  int64_t revision_ ABSL_GUARDED_BY(mutex_) = 0;
  KeyWatch key_;
};

// Writes PREFIX/NAME if it is still of that revision (0: if there is none), and if `leader` is not
// null only while that one leads. The new revision; ABORTED if another was faster or we lead no
// more: read what is there now.
absl::StatusOr<int64_t> PutDocument(EtcdClient& client, const std::string& name,
                                    const std::string& text, int64_t revision,
                                    const Election* leader, Stopper& stopper);

}  // namespace switchyard::discovery
